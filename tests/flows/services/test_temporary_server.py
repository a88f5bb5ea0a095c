"""The temporary Prefect server: it starts early, but writes nothing unless it is needed, and is not needed twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from factsmith.artifacts.signs_of_life import sign_of_life
from factsmith.tasks.pipeline.environment import SERVED

_PREPARE = """
from pathlib import Path
from factsmith.flows.services import temporary_server as server
from factsmith.tasks.pipeline.environment import home, prepare_command_line
prepare_command_line()
server.prepare_temporary_server(home())
print(len(server._prepared))
{more}
"""

_SERVE = """
home().joinpath("prefect").mkdir(parents=True)
address = server.server_address(home())
import httpx, sys
print(httpx.get(address + "/health").json(), "prefect.server.api.server" in sys.modules)
"""


def run(home: Path, more: str = "", **environment: str) -> list[str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**without, "FACTSMITH_HOME": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE.format(more=more)], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout.split("\n")[:-1]


def test_a_server_that_is_not_needed_ends_at_once_and_has_written_nothing(home):
    began = time.monotonic()
    assert run(home, "import time; time.sleep(3)") == ["1"]  # returns when the server's stderr is closed
    assert time.monotonic() - began < 20
    assert not home.exists()


def test_a_server_that_is_needed_answers_while_the_command_does_not_import_it(home):
    assert run(home, _SERVE) == ["1", "True False"]


def test_no_server_is_started_where_there_is_one(home):
    assert run(home, PREFECT_API_URL="http://127.0.0.1:9/api") == ["0"]
    with sign_of_life(home / SERVED, {"api": "http://127.0.0.1:8/api"}):
        assert run(home, "print(server.server_address(home()))") == ["0", "http://127.0.0.1:8/api"]
    assert run(home) == ["1"]  # that one has ended
