"""A program that runs the pipeline and is killed just before it publishes the n-th artifact of a kind."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from factsmith.tasks.pipeline.environment import prepare_command_line


def main(kind: str, number: str, *arguments: str) -> None:
    prepare_command_line()
    from factsmith.artifacts.store import Store
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.run import run
    from factsmith.tasks.keys import stage as keys_stage
    from tests.runs import run_as_functions

    publish = Store._publish
    seen = 0

    def publish_or_die(self, draft, seconds):
        nonlocal seen
        if draft.recipe.series.kind == kind:
            seen += 1
            if seen == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
        publish(self, draft, seconds)

    keys_stage._SHARD_ROWS = 400
    Store._publish = publish_or_die
    run_as_functions(pytest.MonkeyPatch())
    run(compose(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
