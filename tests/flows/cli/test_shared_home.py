"""``FACTSMITH_HOME`` as a URL on the command line: what is refused, and the commands on the store."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.remote import location
from factsmith.artifacts.remote.shared import patience
from factsmith.artifacts.remote.shared.leases import Lease
from factsmith.artifacts.remote.shared.opening import _upstreams
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.environment import home as home_of
from tests.artifacts.remote.shared.conftest import SERIES, machine, write
from tests.s3 import SECRET, failing, s3_server, use_s3, with_authentication

DAY = 86_400


@pytest.fixture
def shared(tmp_path, monkeypatch, home) -> Path:
    """A folder that is shared as the home, and copies on this machine in ``home``."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("FACTSMITH_HOME", f"file://{tmp_path}/shared")
    monkeypatch.setenv("FACTSMITH_CACHE", str(home))
    return tmp_path / "shared"


@pytest.fixture
def other(shared, tmp_path) -> Store:
    """The store as another machine sees it."""
    return machine(tmp_path / "other", f"file://{shared}")


def age(folder: Path, days: float) -> None:
    """Let everything below a folder have been written some days earlier."""
    for path in folder.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - days * DAY
            os.utime(path, (then, then))


def test_each_url_has_copies_of_its_own_on_a_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("FACTSMITH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for url in ("s3://team/store", "s3://team/store/", "s3://team-store", "gs://team/store"):
        monkeypatch.setenv("FACTSMITH_HOME", url)
        folders.add(home_of())
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "factsmith"}
    monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / "mine"))
    assert home_of() == tmp_path / "mine"


def test_a_home_that_cannot_be_used_is_refused_before_anything_starts(
    refused, monkeypatch, home, arguments, tmp_path, shared
):
    for url, said in [
        ("hf://datasets/me/store", "store push"),
        ("gs://team/store", "pip install 'factsmith[gcs]'"),
        ("nosuch://team/store", "nosuch"),
        ("s3://me:hush-hush@team/store", "credentials in the environment"),
        (f"file://{tmp_path}/not-mounted", "mount it"),
    ]:
        monkeypatch.setenv("FACTSMITH_HOME", url)
        monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / url.partition(":")[0]))
        message = refused("precompute", *arguments())
        assert said in message, url
        assert "hush-hush" not in message
    assert not (tmp_path / "not-mounted").exists()


def test_copies_of_two_stores_are_not_mixed(refused, factsmith, monkeypatch, shared, home, tmp_path):
    assert factsmith("store", "ls").code == 0
    monkeypatch.setenv("FACTSMITH_HOME", f"file://{tmp_path}")
    assert "has the copies of another store" in refused("store", "ls")
    monkeypatch.setenv("FACTSMITH_HOME", str(home))
    assert "no store of its own" in refused("store", "ls")
    Store(tmp_path / "own").get_or_build(SERIES.member(n=1), write())
    monkeypatch.setenv("FACTSMITH_HOME", f"file://{shared}")
    monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / "own"))
    assert "is a store of its own" in refused("store", "ls")


@pytest.fixture
def endpoint():
    import s3fs

    with s3_server() as url:
        yield url
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().rm("readers", recursive=True)  # Servers of one process share their buckets.


def read_only(endpoint: str) -> dict[str, str]:
    """Credentials at the server that may list and read, and nothing else."""
    import boto3

    given = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    iam = boto3.client("iam", **given, aws_access_key_id="root", aws_secret_access_key="root")
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "s3:Head*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def test_who_may_not_write_is_told_so_before_any_work_and_leaves_nothing(
    refused, factsmith, monkeypatch, endpoint, arguments, home, tmp_path
):
    import s3fs

    use_s3(monkeypatch, endpoint)
    monkeypatch.setenv("FACTSMITH_HOME", "s3://readers/store")
    monkeypatch.setenv("FACTSMITH_CACHE", str(home))
    message = refused("precompute", *arguments())
    assert "there is no bucket readers" in message
    assert "there is no bucket readers" in refused("store", "ls")

    s3fs.S3FileSystem().mkdir("readers")
    artifact, _ = machine(tmp_path / "other", "s3://readers/store").get_or_build(SERIES.member(n=1), write())
    reader = read_only(endpoint)
    with with_authentication(endpoint):
        message = refused("precompute", *arguments())  # The server knows nobody of this name.
        assert "AWS_ACCESS_KEY_ID" in message
        assert SECRET not in message
        for name, value in reader.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        _upstreams.clear()  # As in a new process, which reads its credentials.
        message = refused("precompute", *arguments())
        assert "The store s3://readers/store cannot be written" in message
        assert "runtime.mirror=s3://readers/store" in message
        assert reader["AWS_SECRET_ACCESS_KEY"] not in message
        # Reading needs no more.
        assert artifact.digest[:12] in factsmith("store", "ls").out
        assert factsmith("store", "verify").code == 0
    use_s3(monkeypatch, endpoint)
    names = Counter(path.split("/")[2] for path in s3fs.S3FileSystem().find("readers/store"))
    assert names == {"artifacts": 1, "files": 2, "users": 1}  # all of them of the machine that may write


def test_a_server_that_never_answers_is_given_up(refused, monkeypatch, home, arguments):
    monkeypatch.setattr(location, "_TIMEOUT", 0.2)
    monkeypatch.setattr(patience, "_PAUSES", (0,))
    monkeypatch.setenv("FACTSMITH_HOME", "s3://silent/store")
    monkeypatch.setenv("FACTSMITH_CACHE", str(home))
    started = time.monotonic()
    with failing(answers=False) as url:
        use_s3(monkeypatch, url)
        message = refused("precompute", *arguments())
    assert "s3://silent/store cannot be read" in message
    assert "check that it can be reached" in message
    assert time.monotonic() - started < 25


def test_the_store_s_commands_see_what_is_shared_and_what_is_here(factsmith, other, shared, home):
    artifact, _ = other.get_or_build(SERIES.member(n=1), write())
    assert "1 artifacts in file://" in factsmith("store", "ls").out
    assert "copies of 0 in" in factsmith("store", "ls").out
    assert json.loads(factsmith("store", "ls", "--json").out)[0]["digest"] == artifact.digest
    assert json.loads(factsmith("store", "show", artifact.digest[:9]).out)["content"] == artifact.manifest.content
    assert factsmith("store", "verify").out == "1 artifacts, all bytes as they were written\n"
    (file,) = shared.glob("files/*/*/*/*/b.txt")
    file.write_text("texT")
    result = factsmith("store", "verify", artifact.address)
    assert (result.code, "b.txt has other bytes than were written" in result.out) == (1, True)


def test_rm_removes_what_all_see_and_the_copy_here_but_not_during_a_run(factsmith, refused, other, shared, home):
    artifact, _ = other.get_or_build(SERIES.member(n=1), write())
    sink, _ = other.get_or_build(
        Series("made", 1, {}).member(), lambda draft: (write()(draft), draft.read_from(artifact))
    )
    assert factsmith("store", "ls").code == 0
    here = machine(home, f"file://{shared}")
    assert here.find(SERIES.member(n=1)).path.is_dir()
    assert "1 other artifacts were made from these" in refused("store", "rm", artifact.address, clean=False)
    with other.in_use():
        other.upstream.forget()
        other.find(SERIES.member(n=3))  # It has looked at the store.
        message = refused("store", "rm", artifact.address, "--force", clean=False)
        assert "is in use.\n  got: machine " in message
        assert f"process {os.getpid()}" in message
    assert "1 things artifacts in file://" in factsmith("store", "rm", artifact.address, "--force", "--dry-run").out
    assert list(shared.glob("artifacts/things/*/*/*"))
    result = factsmith("store", "rm", artifact.address, "--force")
    assert "1 things artifacts in file://" in result.out
    assert "1 things copies" in result.out
    assert not [path for path in shared.glob("*/things/*/*/*") if path.is_file()]
    assert machine(home, f"file://{shared}").find(SERIES.member(n=1)) is None
    assert machine(home, f"file://{shared}").find(sink_recipe := Series("made", 1, {}).member()) is not None
    assert sink.digest == sink_recipe.digest
    assert other.copy(artifact.place) is not None  # other machines keep their copies


def test_gc_removes_what_killed_machines_have_left_after_a_day(factsmith, other, shared, home):
    kept, _ = other.get_or_build(SERIES.member(n=1), write())
    place = other.place(SERIES.member(n=2))
    for name in (f"files/{place}/{'0' * 32}/half.bin", f"leases/{'1' * 32}.json", f"damaged/{'2' * 32}.json"):
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        (shared / name).write_bytes(b"123")
    stray = shared / "files" / kept.place / ("3" * 32) / "b.txt"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"12345")
    assert "left in" not in factsmith("store", "gc").out  # Somebody may be writing these.
    age(shared, 2)
    with other.in_use():
        other.find(SERIES.member(n=3))
        out = factsmith("store", "gc", "--dry-run").out
        assert "2 left in" in out
        assert stray.exists()
        with other.lock(kept.digest):  # It is built, so nothing of it is removed.
            factsmith("store", "gc")
        assert stray.exists()
        (shared / f"leases/{'1' * 32}.json").write_bytes(b"123")
        (shared / f"damaged/{'2' * 32}.json").write_bytes(b"123")
        (shared / f"files/{place}/{'0' * 32}").mkdir(exist_ok=True)
        (shared / f"files/{place}/{'0' * 32}/half.bin").write_bytes(b"123")
        age(shared, 2)
        out = factsmith("store", "gc").out
    for line in ("/files, 8 bytes", "/leases, 3 bytes", "/damaged, 3 bytes"):
        assert line in out
    assert not stray.exists()
    assert (machine(home, f"file://{shared}").find(SERIES.member(n=1)).path / "b.txt").read_text() == "text"


def test_gc_unused_keeps_what_any_machine_has_used_and_needs_the_store_alone(factsmith, refused, other, shared, home):
    used, unused = Series("used", 1, {}), Series("unused", 1, {})
    for series in (used, unused):
        other.get_or_build(series.member(), write())
    source = other.get(used.member())
    other.get_or_build(Series("user", 1, {}).member(), lambda draft: (write()(draft), draft.read_from(source)))
    age(shared, 40)
    reader = machine(home.with_name("reader"), f"file://{shared}")
    with reader.in_use():
        assert reader.find(Series("user", 1, {}).member()) is not None
        assert "is in use" in refused("store", "gc", "--unused", "30", clean=False)
    out = factsmith("store", "gc", "--unused", "30").out
    assert "1 unused artifacts in file://" in out
    kinds = {path.parts[-4] for path in shared.glob("artifacts/*/*/*/manifest.json")}
    assert kinds == {"used", "user"}  # One was used, the other is needed for it.
    assert "1 user copies" not in factsmith("store", "gc", "--copies").out


def test_a_second_removal_waits_for_nothing_and_is_refused(refused, other, shared):
    artifact, _ = other.get_or_build(SERIES.member(n=1), write())
    with Lease(other.upstream.location, "leases/removing.json", "the removal of artifacts").held():
        assert "Somebody else removes artifacts" in refused("store", "rm", artifact.digest, clean=False)
