"""A program that runs the pipeline at the same time as another, and prints what it built."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from factsmith.tasks.pipeline.environment import prepare_command_line


def main(ready: str, other_ready: str, *arguments: str) -> None:
    """Make the file ``ready``, wait for ``other_ready``, and run."""
    prepare_command_line()
    from factsmith.artifacts.store import Store
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.run import run
    from factsmith.tasks.keys import stage as keys_stage
    from tests.runs import run_as_functions

    publish = Store._publish
    built = []

    def publish_slowly(self, draft, seconds):
        time.sleep(0.2)  # The other process arrives while this one builds.
        publish(self, draft, seconds)
        built.append(draft.recipe.address)

    keys_stage._SHARD_ROWS = 400
    Store._publish = publish_slowly
    run_as_functions(pytest.MonkeyPatch())
    Path(ready).touch()
    while not Path(other_ready).exists():
        time.sleep(0.01)
    report = run(compose(arguments))
    print(json.dumps({"built": built, "states": {stage.name: stage.state for stage in report.stages}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
