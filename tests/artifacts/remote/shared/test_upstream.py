"""Two machines with one store: each artifact is built once, nothing half-written is seen, damage is noticed."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from pathlib import Path

import pytest

from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME
from factsmith.artifacts.remote.location import Location, UnreachableError
from factsmith.artifacts.remote.mirror import Mirror
from factsmith.artifacts.remote.shared import leases, patience
from factsmith.artifacts.remote.transfer import Lookup
from factsmith.artifacts.rows import RowSeries
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.progress import progress
from tests.artifacts.remote.shared.conftest import SERIES, machine, write
from tests.runs import contents

RECIPE = SERIES.member(n=1)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The names of the files that are fetched."""
    names: list[str] = []
    fetch = Location.fetch_if_there
    monkeypatch.setattr(
        Location, "fetch_if_there", lambda self, name, file: names.append(name) or fetch(self, name, file)
    )
    return names


def files(url: str) -> set[str]:
    folder = Path(url.removeprefix("file://"))
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_another_machine_finds_what_was_built_and_fetches_it_when_it_is_read(one, two, fetched):
    built, new = one.get_or_build(RECIPE, write())
    assert new
    found, new = two.get_or_build(RECIPE, pytest.fail)
    assert not new
    assert found.manifest == built.manifest
    assert (found.key, found.address, found.place) == ({"n": 1}, built.address, built.place)
    assert fetched == []
    assert two.all_paths() == []
    assert (found.path / "b.txt").read_text() == "text"
    assert len(fetched) == 2
    assert contents(two) == contents(one)
    assert two.find(RECIPE).path == two.path(built.place)
    assert len(fetched) == 2
    assert copy.copy(found) == two.find(RECIPE)  # as another process gets it


def test_members_of_a_series_are_seen_wherever_they_were_made(one, two, fetched):
    def rows(draft, group):
        (draft.path / "rows").write_text(",".join(group))

    RowSeries(one, SERIES).get_or_build(["a", "b", "c"], rows, at_once=2)
    found, built = RowSeries(two, SERIES).get_or_build(["d", "b"], rows, at_once=2)
    assert built == 1
    assert set(found) == {"a", "b", "c", "d"}
    assert fetched == []
    assert (found["c"].artifact.path / "rows").read_text() == "c"
    assert [name.rpartition("/")[2] for name in fetched] == ["rows"]
    one.upstream.forget()
    assert [artifact.digest for artifact in two.members(SERIES)] == sorted(one.digest for one in one.members(SERIES))


def test_threads_of_two_machines_build_each_artifact_once(tmp_path, folder, monkeypatch):
    built: Counter[int] = Counter()
    stores = [machine(tmp_path / f"machine-{n % 2}", folder) for n in range(6)]
    begin = threading.Barrier(len(stores))
    errors: list[BaseException] = []

    def work(store: Store) -> None:
        try:
            begin.wait()
            for n in range(3):

                def build(draft, n=n):
                    built[n] += 1
                    write(str(n))(draft)

                with store.in_use():
                    assert (store.get_or_build(SERIES.member(n=n), build)[0].path / "b.txt").read_text() == str(n)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert built == {0: 1, 1: 1, 2: 1}
    assert not [name for name in files(folder) if name.startswith("leases/") and name.endswith(".json")]


def test_the_first_publication_counts_whatever_bytes_come_later(one, two, caplog):
    """As after a lease that was lost: both have built the artifact, with other last bits."""
    with one.draft(RECIPE) as draft:
        write("first")(draft)
    with two.draft(RECIPE) as draft:
        write("second")(draft)
    assert "another machine has published" in caplog.text
    for store in (one, two):
        assert (store.get(RECIPE).path / "b.txt").read_text() == "first"
    assert contents(two) == contents(one)
    assert not list(two.root.glob("unsent/*/*/*"))
    folder = one.upstream.location._path
    assert len(list(Path(folder).glob("files/*/*/*/*"))) == 1


def test_what_could_not_be_sent_is_kept_and_sent_by_the_next_run(one, two, monkeypatch, caplog):
    monkeypatch.setattr(patience, "_PAUSES", (0, 0))
    attempts = []

    def fail(self, source, name):
        attempts.append(name)
        raise UnreachableError("The server does not answer.", remedy="wait")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "send", fail)
        with pytest.raises(InputError, match="was built, but cannot be sent") as caught:
            one.get_or_build(RECIPE, write())
    assert "is then sent and not built" in caught.value.details["remedy"]
    assert 3 <= len(attempts) <= 6  # of two files, three times
    assert one.all_paths() == []
    assert two.find(RECIPE) is None
    again = machine(one.root, one.upstream.url)
    again.check_writable()
    assert "sending things/" in caplog.text
    assert not again.get_or_build(RECIPE, pytest.fail)[1]
    two.upstream.forget()
    assert (two.find(RECIPE).path / "b.txt").read_text() == "text"


@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
def test_a_damaged_file_is_noticed_set_aside_and_built_again(one, two, folder, fault):
    one.get_or_build(RECIPE, write())
    (file,) = Path(folder.removeprefix("file://")).glob("files/*/*/*/*/b.txt")
    {"flip": lambda: file.write_text("texT"), "cut": lambda: file.write_text("t"), "remove": file.unlink}[fault]()
    with pytest.raises(DamagedArtifactError, match="b.txt") as caught:
        _ = two.find(RECIPE).path
    assert "built again" in caught.value.details["remedy"]
    two.upstream.forget()
    assert two.find(RECIPE) is None
    assert any(name.startswith("damaged/") for name in files(folder))
    _, built = two.get_or_build(RECIPE, write())
    assert built
    assert not list(two.root.glob("staging/*"))
    third = machine(one.root.with_name("three"), folder)
    assert (third.find(RECIPE).path / "b.txt").read_text() == "text"


def test_a_damaged_manifest_is_replaced(one, two, folder, caplog):
    one.get_or_build(RECIPE, write())
    (file,) = Path(folder.removeprefix("file://")).glob(f"artifacts/*/*/*/{MANIFEST_NAME}")
    file.write_text(file.read_text().replace('"seconds"', '"secondx"'))
    assert two.find(RECIPE) is None
    assert "is not a manifest" in caplog.text or "has been changed" in caplog.text
    assert two.get_or_build(RECIPE, write())[1]
    third = machine(one.root.with_name("three"), folder)
    assert (third.find(RECIPE).path / "b.txt").read_text() == "text"


def test_what_was_pushed_is_found_and_what_was_shared_is_pulled(one, two, folder, tmp_path):
    from factsmith.artifacts.remote.lineage import with_lineage
    from factsmith.artifacts.remote.mirror import StoredArtifacts
    from factsmith.artifacts.remote.transfer import push

    own = Store(tmp_path / "own")
    artifact, _ = own.get_or_build(RECIPE, write("pushed"))
    mirror = Mirror(Location.open(folder))
    chosen = with_lineage(StoredArtifacts(own), [artifact.place], keys=False)
    push(own, mirror, chosen, progress, dry_run=False)
    assert (one.find(RECIPE).path / "b.txt").read_text() == "pushed"

    two.get_or_build(SERIES.member(n=2), write("shared"))
    other = Store(tmp_path / "other")
    other.source = Lookup(other, Mirror(Location.open(folder)), {"things"}, progress)
    assert (other.find(SERIES.member(n=2)).path / "b.txt").read_text() == "shared"
    assert (other.find(RECIPE).path / "b.txt").read_text() == "pushed"
    again = push(
        two,
        Mirror(Location.open(folder)),
        with_lineage(StoredArtifacts(two), two.places(), keys=False),
        progress,
        dry_run=False,
    )
    assert {one.state for one in again} == {"there"}


def test_only_digests_are_leased(one, folder):
    with one.lock("mlflow"):
        assert not [name for name in files(folder) if name.startswith("leases")]
    with one.lock(RECIPE.digest):
        assert f"leases/{RECIPE.digest}.json" in files(folder)
    assert f"leases/{RECIPE.digest}.json" not in files(folder)
    assert leases.LENGTH > 60
