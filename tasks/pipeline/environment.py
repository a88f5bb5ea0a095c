"""Where Factsmith keeps its files, and the environment that its libraries run in."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path

from factsmith.artifacts.errors import InputError

__all__ = [
    "SERVED",
    "check_vacant",
    "check_writable",
    "disable_telemetry",
    "home",
    "prepare_command_line",
    "prepare_scheduler",
    "shared_home",
]

SERVED = "served.json"
"""The file in the home that says where `factsmith serve` serves Prefect and MLflow, while it does."""


def home() -> Path:
    """The folder with what belongs to this machine: ``FACTSMITH_HOME``, or ``.factsmith`` in the working directory.

    If ``FACTSMITH_HOME`` is a URL, artifacts are there, and this folder is ``FACTSMITH_CACHE``: by default one for each
    URL in the user's cache folder.
    """
    url = shared_home()
    if url is None:
        return Path(os.environ.get("FACTSMITH_HOME") or ".factsmith").expanduser().resolve()
    if given := os.environ.get("FACTSMITH_CACHE"):
        return Path(given).expanduser().resolve()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve()
    name = re.sub(r"[^a-zA-Z0-9.-]+", "-", url.partition("://")[2]).strip("-.")[:60]
    return caches / "factsmith" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def shared_home() -> str | None:
    """The URL in ``FACTSMITH_HOME``, if it is one: artifacts are there, for several machines."""
    given = os.environ.get("FACTSMITH_HOME", "")
    return given.rstrip("/") if "://" in given else None


def check_writable(file: Path) -> None:
    """Check that a file that the user asks for can be written, before the work for it begins.

    Raises:
        InputError: its folder does not exist or cannot be written to, or it is a folder.
    """
    parent = file.absolute().parent
    if file.is_dir():
        raise InputError(f"{file} cannot be written.", got="a folder", expected="a file")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{file} cannot be written.", got=f"{parent} is not a writable folder")


def check_vacant(folder: Path, known: str | None = None) -> None:
    """Check that a finished folder can take the place of ``folder``, which is resolved.

    Args:
        folder: the folder.
        known: what is in it, for the message, if that is known.

    Raises:
        InputError: it has files, or is a folder that cannot be replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(
            f"{folder} exists already.",
            got=known,
            expected="a new or an empty folder",
            remedy="use it, or give another folder" if known else None,
        )
    current = folder == Path.cwd()
    if current or folder.is_mount():
        raise InputError(
            f"{folder} cannot be replaced by another folder.",
            got="the current folder" if current else "a mount point",
            expected="a new or an empty folder",
            remedy=f"give a folder in it, such as {folder / 'edited'}",
        )


def disable_telemetry() -> None:
    """Turn off the telemetry of every library, unless the user has set it in the environment."""
    _set_defaults(
        DO_NOT_TRACK="true",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
        RAY_USAGE_STATS_ENABLED="0",
    )


def prepare_command_line() -> None:
    """Set the environment of a command. Call this before Prefect and MLflow are imported."""
    # Prefect looks for its folder when it is imported. The folder is made if there is a server.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    _set_defaults(
        PREFECT_HOME=str(home() / "prefect"),
        # The command line reports progress and errors itself. MLflow would log the traceback of errors that it raises.
        PREFECT_LOGGING_LEVEL="CRITICAL",
        PREFECT_SERVER_LOGGING_LEVEL="CRITICAL",
        MLFLOW_LOGGING_LEVEL="CRITICAL",
    )
    _quiet_libraries()


def prepare_scheduler() -> None:
    """Set the environment that scheduled runs inherit. Call this before Prefect is imported."""
    os.environ["FACTSMITH_HOME"] = shared_home() or str(
        home()
    )  # A scheduled run may start in another working directory.
    _set_defaults(
        # Prefect's UI shows our log with each run. Messages logged outside a run are ignored there.
        PREFECT_LOGGING_EXTRA_LOGGERS="factsmith",
        PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
        MLFLOW_LOGGING_LEVEL="WARNING",
    )
    _quiet_libraries()


def _quiet_libraries() -> None:
    _set_defaults(
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        # Wait about 15 seconds for a tracking server that does not answer, instead of several minutes.
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="3",
        TOKENIZERS_PARALLELISM="false",
    )


def _set_defaults(**values: str) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
