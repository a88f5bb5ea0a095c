"""Where Factsmith keeps what it makes, and how the services it uses are told so."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

__all__ = ["embedded_services", "home", "no_telemetry", "scheduled_services"]


def home() -> Path:
    """``FACTSMITH_HOME``, or ``.factsmith`` where one stands."""
    return Path(os.environ.get("FACTSMITH_HOME") or ".factsmith").expanduser().resolve()


def no_telemetry() -> None:
    """Keep every library from reporting home, unless the user has said otherwise in the environment."""
    _set_defaults(
        DO_NOT_TRACK="true",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
    )


def embedded_services() -> None:
    """Settings for a run that nobody but its user looks after; must come before Prefect and MLflow are imported."""
    # Prefect looks for its folder when it is imported; it is made when the user's input has been looked at.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    _set_defaults(
        PREFECT_HOME=str(home() / "prefect"),
        # A first start migrates a database; on a busy machine that takes longer than Prefect's 20 seconds.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
        # The command line tells what happens; their own lines would tell it again.
        PREFECT_LOGGING_LEVEL="CRITICAL",
        PREFECT_SERVER_LOGGING_LEVEL="CRITICAL",
    )
    _quiet_libraries()


def scheduled_services() -> None:
    """Settings for runs that a Prefect server starts, inherited by their processes; must come before its import."""
    os.environ["FACTSMITH_HOME"] = str(home())  # wherever a run may stand
    _set_defaults(
        # What we log shows with the run in Prefect's UI; what is logged outside a run has no place there.
        PREFECT_LOGGING_EXTRA_LOGGERS="factsmith",
        PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
    )
    _quiet_libraries()


def _quiet_libraries() -> None:
    _set_defaults(
        MLFLOW_LOGGING_LEVEL="WARNING",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        # A tracking server that does not answer is worth a quarter of a minute, not several.
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="3",
        TOKENIZERS_PARALLELISM="false",
    )


def _set_defaults(**values: str) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
