"""In a store of any content, an artifact is found as it was built, or built again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Series, canonical_json
from factsmith.artifacts.removal import alone, dependants, leftovers, remove, unused
from factsmith.artifacts.rows import RowSeries
from factsmith.artifacts.store import Store
from tests.fuzz.conftest import examples

SERIES = Series("things", 1, {"size": 3}, {"source": "abc"})
RECIPE = SERIES.member(n=1)
FILES = {"a.txt": b"hello", "deep/b.bin": bytes(range(64))}

text = st.one_of(st.text(max_size=8), st.sampled_from(["", "..", "/", "a.txt", "../a.txt", "\0", "\ud800", "9" * 5000]))
value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


def write(draft: Draft) -> None:
    for name, content in FILES.items():
        (draft.path / name).parent.mkdir(exist_ok=True)
        (draft.path / name).write_bytes(content)
    draft.summary = {"words": 1, "name": "Zürich"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A store with the artifact in it, to be copied."""
    root = tmp_path_factory.mktemp("pristine") / "home"
    Store(root).get_or_build(RECIPE, write)
    return root


@pytest.fixture(scope="module")
def store(pristine, tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("fuzzed") / "home")


def fresh(pristine: Path, store: Store) -> Path:
    """Copy the pristine store into ``store``; the artifact's folder."""
    shutil.rmtree(store.root, ignore_errors=True)
    shutil.copytree(pristine, store.root)
    return store.root / "artifacts" / store.place(RECIPE)


def right_or_rebuilt(store: Store, *, changed: bool) -> None:
    """Any content of the store can be listed and checked, and the artifact is found or built again."""
    for path in store.all_paths():
        store.verify(path)
    with contextlib.suppress(InputError):
        store.resolve(RECIPE.digest)
    unused(store, 0)
    dependants(store.places(), store.manifests())
    artifact, built = store.get_or_build(RECIPE, write)
    assert built == changed
    assert {name: (artifact.path / name).read_bytes() for name in FILES} == FILES
    assert artifact.summary == {"words": 1, "name": "Zürich"}
    assert store.verify(artifact.path) == []
    assert [one.digest for one in store.members(SERIES)] == [RECIPE.digest]


def respelt(content: dict) -> bytes:
    """A manifest with a checksum that fits it, as only somebody who wants to deceive would write."""
    content = {name: one for name, one in content.items() if name != "checksum"}
    return json.dumps({**content, "checksum": hashlib.sha256(canonical_json(content)).hexdigest()}).encode()


@examples(40)
@given(st.data())
def test_one_changed_byte_is_noticed_wherever_it_is(pristine, store, data):
    folder = fresh(pristine, store)
    name = data.draw(st.sampled_from([*FILES, MANIFEST_NAME]))
    content = bytearray((folder / name).read_bytes())
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit
    before = json.loads((folder / MANIFEST_NAME).read_bytes())
    (folder / name).write_bytes(content)
    try:  # white space of a manifest says nothing
        same = json.loads((folder / MANIFEST_NAME).read_bytes()) == before and name == MANIFEST_NAME
    except ValueError:
        same = False
    right_or_rebuilt(store, changed=not same)


@examples(25)
@given(st.data())
def test_a_file_cut_anywhere_is_noticed(pristine, store, data):
    folder = fresh(pristine, store)
    name = data.draw(st.sampled_from([*FILES, MANIFEST_NAME]))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    right_or_rebuilt(store, changed=True)


@examples(40)
@given(st.data())
def test_a_manifest_with_another_value_somewhere_is_no_manifest(pristine, store, data):
    folder = fresh(pristine, store)
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    name = data.draw(st.sampled_from([*content, "more"]))
    new = data.draw(value)
    if json.dumps(new) == json.dumps(content.get(name)):
        return
    (folder / MANIFEST_NAME).write_bytes(json.dumps({**content, name: new}).encode())
    right_or_rebuilt(store, changed=True)


@examples(25)
@given(st.sampled_from(["kind", "digest", "series", "recipe", "files"]), value)
def test_a_manifest_that_was_forged_deceives_nobody_about_the_files(pristine, store, name, new):
    folder = fresh(pristine, store)
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    try:
        forged = respelt({**content, name: new})
    except (ValueError, TypeError, UnicodeEncodeError):
        return
    if new == content[name]:
        return
    (folder / MANIFEST_NAME).write_bytes(forged)
    right_or_rebuilt(store, changed=True)


@examples(25)
@given(st.one_of(st.binary(max_size=60), value.map(json.dumps).map(str.encode)))
@example(b"[" * 100_000)
@example(b'{"checksum":' * 50_000)
@example(b'{"checksum": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe")
@example(b"null")
@example(b"")
def test_any_bytes_are_a_manifest_or_damage(pristine, store, content):
    folder = fresh(pristine, store)
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(DamagedArtifactError):
        Manifest.load(folder / MANIFEST_NAME)
    right_or_rebuilt(store, changed=True)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME, "deep", "."])
@pytest.mark.parametrize("what", ["nothing", "folder", "link to nowhere", "link to itself"])
def test_something_else_in_the_place_of_a_file_is_damage(pristine, store, name, what):
    path = fresh(pristine, store) / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if what == "folder":
        path.mkdir()
    elif what.startswith("link"):
        path.symlink_to("nowhere" if what == "link to nowhere" else path.name)
    right_or_rebuilt(store, changed=True)


@examples(40)
@given(st.lists(st.tuples(
    st.sampled_from(["artifacts", "artifacts/things", f"artifacts/things/{SERIES.digest}", "staging", "locks"]),
    st.sampled_from(["x", "y", ".hidden", "a b", "é", "*", "[a]", "\u202e"]), st.booleans(),
), max_size=6))  # fmt: skip
def test_strange_things_in_a_store_are_no_artifacts(pristine, store, strange):
    fresh(pristine, store)
    for parent, name, is_folder in strange:
        path = store.root / parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.mkdir() if is_folder else path.touch()
    right_or_rebuilt(store, changed=False)
    with alone(store):
        remove(store, leftovers(store))
        assert leftovers(store) == []
    right_or_rebuilt(store, changed=False)


@examples(30)
@given(st.binary(max_size=200), st.sampled_from([0, 20, 4000]))
def test_a_memory_of_checksums_of_any_content_changes_nothing(pristine, store, junk, place):
    fresh(pristine, store)
    with store.checksums.database.open("r+b") as file:
        file.seek(place)
        file.write(junk)
    right_or_rebuilt(store, changed=False)


@examples(40)
@given(st.integers(0, 1), st.sampled_from(["rows.json", MANIFEST_NAME]), st.floats(0, 1, exclude_max=True))
def test_rows_are_found_or_built_again(store, which, name, share):
    shutil.rmtree(store.root, ignore_errors=True)
    rows = RowSeries(store, SERIES)
    wanted = [f"{number:032x}" for number in range(6)]

    def build(draft: Draft, digests: list[str]) -> None:
        (draft.path / "rows.json").write_text(json.dumps(digests))

    rows.get_or_build(wanted[:4], build, at_once=2)
    victim = sorted(store.all_paths())[which]
    content = (victim / name).read_bytes()  # A manifest's length varies, as it holds times.
    (victim / name).write_bytes(content[: int(share * len(content))])
    found, built = rows.get_or_build(wanted, build, at_once=3)
    assert built == 4  # the two that were damaged, and two new ones
    for digest in wanted:
        row = found[digest]
        assert json.loads((row.artifact.path / "rows.json").read_text())[row.place] == digest


@examples(25)
@given(st.one_of(text, st.text(st.sampled_from("abcdef0123456789/*?[].\\"))))
def test_any_address_names_artifacts_or_is_refused(pristine, store, address):
    fresh(pristine, store)
    with contextlib.suppress(InputError):
        assert store.resolve(address)
