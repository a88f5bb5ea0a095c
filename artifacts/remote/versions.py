"""Files at a location with their versions: written only if nobody else has written them, dated by the server.

S3 does this by conditional requests (``If-None-Match``, ``If-Match``), which Amazon S3, MinIO, Ceph and others know. In
a folder, a new file appears by a link, and a file is replaced under a lock. Elsewhere, a new file is written in
fsspec's mode ``create``, which is atomic on Google Cloud Storage, and a file is compared before it is replaced: two
processes that do so at once may then both succeed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import causes
from factsmith.artifacts.remote.location import Location

__all__ = ["Entry", "Seen", "checksum", "create", "entries", "look", "remove_version", "replace", "server_time"]


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        size: its bytes.
        tag: differs between versions of the file.
        modified: when it was written, by the server's clock, in seconds since the epoch.
    """

    size: int
    tag: str
    modified: float


@dataclass(frozen=True)
class Seen:
    """A version of a file.

    Attributes:
        tag: as in ``Entry``.
        age: seconds since it was written, by the server's clock at both ends.
    """

    tag: str
    age: float


def create(location: Location, name: str, data: bytes) -> str | None:
    """Write a file that does not exist. Returns its tag, or ``None`` if the file exists.

    Raises:
        InputError: the location cannot be written.
    """
    with location.explained("written"):
        try:
            if _is_s3(location):
                return _put(location, name, data, IfNoneMatch="*")
            if location.is_local:
                return _link(Path(location.join(name)), data)
            location.fs.pipe_file(location.join(name), data, mode="create")
        except Exception as error:
            if isinstance(error, FileExistsError) or _refused(error):
                return None
            raise
    return _look(location, name).tag


def replace(location: Location, name: str, data: bytes, tag: str) -> str | None:
    """Write the next version of a file. Returns its tag, or ``None`` if the file is not that of ``tag`` any more.

    ``data`` must differ from what was there.

    Raises:
        InputError: the location cannot be written.
    """
    with location.explained("written"):
        try:
            if _is_s3(location):
                return _put(location, name, data, IfMatch=tag)
            if location.is_local:
                return _replace_locked(Path(location.join(name)), data, tag)
            if _look(location, name).tag != tag:
                return None
            location.fs.pipe_file(location.join(name), data)
        except Exception as error:
            if isinstance(error, FileNotFoundError) or _refused(error):
                return None
            raise
    return _look(location, name).tag


def remove_version(location: Location, name: str, tag: str) -> bool:
    """Remove a file if it is that of ``tag``. Returns whether it was.

    Raises:
        InputError: the location cannot be written.
    """
    with location.explained("written"):
        try:
            if _is_s3(location):
                location.fs.call_s3("delete_object", IfMatch=tag, **_address(location, name))
            elif _look(location, name).tag != tag:
                return False
            else:
                location.fs.rm_file(location.join(name))
        except Exception as error:
            if isinstance(error, FileNotFoundError) or _refused(error):
                return False
            raise
    return True


def look(location: Location, name: str) -> Seen | None:
    """The version of a file that is there now, if there is one.

    Raises:
        InputError: the location cannot be read, or, if it is no S3 service, not written.
    """
    if _is_s3(location):
        with location.explained("read"):
            try:
                found = location.fs.call_s3("head_object", **_address(location, name))
            except FileNotFoundError:
                return None
            return Seen(found["ETag"], _date(found) - _seconds(found["LastModified"]))
    with location.explained("read"):
        try:
            entry = _look(location, name)
        except FileNotFoundError:
            return None
    return Seen(entry.tag, server_time(location) - entry.modified)


def server_time(location: Location) -> float:
    """What the server's clock says, in seconds since the epoch: when a file is dated that is written now.

    Raises:
        InputError: the location cannot be read or written.
    """
    if _is_s3(location):
        with location.explained("read"):
            bucket = _address(location, "")["Bucket"]
            return _date(location.fs.call_s3("head_bucket", Bucket=bucket))
    name = f"clock-{uuid.uuid4().hex}"
    location.send(b"now", name)
    with location.explained("read"):
        modified = _look(location, name).modified
    location.remove(name)
    return modified


def entries(location: Location, folder: str) -> dict[str, Entry]:
    """Every file below ``folder``, by its name in the folder. Empty if there is no such folder.

    Raises:
        InputError: the location cannot be read.
    """
    return {name: _entry(info) for name, info in location.found(folder).items()}


def checksum(location: Location, name: str) -> str | None:
    """SHA-256 of a file, which is read in parts; ``None`` if there is no such file.

    Raises:
        InputError: the location cannot be read.
    """
    with location.explained("read"):
        try:
            with location.fs.open(location.join(name), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None


def _look(location: Location, name: str) -> Entry:
    return _entry(location.fs.info(location.join(name)))


def _entry(info: dict[str, Any]) -> Entry:
    when = next(
        (info[key] for key in ("LastModified", "last_modified", "mtime", "updated", "created") if key in info), 0.0
    )
    modified = _seconds(when)
    tag = next((str(info[key]) for key in ("ETag", "etag", "generation") if info.get(key)), None)
    return Entry(int(info["size"] or 0), tag or f"{info.get('ino', 0)}-{modified}-{info['size']}", modified)


def _seconds(when: Any) -> float:
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime) else float(when)


# ---------------------------------------------------------------------------------------------------------------- S3


def _is_s3(location: Location) -> bool:
    return location.protocol in ("s3", "s3a")


def _address(location: Location, name: str) -> dict[str, str]:
    bucket, _, key = location.join(name).partition("/")
    return {"Bucket": bucket, "Key": key}


def _put(location: Location, name: str, data: bytes, **condition: str) -> str:
    answer = location.fs.call_s3("put_object", Body=data, **_address(location, name), **condition)
    return str(answer["ETag"])


def _date(answer: dict[str, Any]) -> float:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


def _refused(error: Exception) -> bool:
    """Whether a server says that somebody else has written the file, or is writing it."""
    answers = (getattr(one, "response", None) for one in causes(error))
    codes = [answer.get("Error", {}).get("Code") for answer in answers if isinstance(answer, dict)]
    return any(code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409") for code in codes)


# ----------------------------------------------------------------------------------------------------------- folders


def _link(path: Path, data: bytes) -> str:
    """Let a new file appear whole.

    Raises:
        FileExistsError: there is one.
    """
    hidden = _written(path, data)
    try:
        os.link(hidden, path)
    finally:
        hidden.unlink()
    return _tag(path)


def _replace_locked(path: Path, data: bytes, tag: str) -> str | None:
    with (path.parent / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _tag(path) != tag:
            return None
        _written(path, data).replace(path)
        return _tag(path)


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with hidden.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hidden


def _tag(path: Path) -> str:
    stat = path.stat()
    return _entry({"ino": stat.st_ino, "mtime": stat.st_mtime, "size": stat.st_size}).tag
