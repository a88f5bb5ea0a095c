"""Where Factsmith keeps what it makes, and how the services it uses are told so."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home", "quiet_services"]


def home() -> Path:
    """``FACTSMITH_HOME``, or ``.factsmith`` where one stands."""
    return Path(os.environ.get("FACTSMITH_HOME") or ".factsmith").expanduser().resolve()


def quiet_services() -> None:
    """Turn the telemetry of every library off and keep Prefect's state below ``home``.

    Must run before they are imported. Whatever the user has set in the environment stays.
    """
    defaults = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_HOME": str(home() / "prefect"),
        # A first start migrates a database; on a busy machine that takes longer than Prefect's 20 seconds.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        # The command line tells what happens; Prefect's own lines would tell it again.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
