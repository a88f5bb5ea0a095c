"""Commands that are killed at a random moment, and run again, leave what a run that was never killed leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.campaigns.commands import finish, kill_at_random, left

SEQUENCE = ["method.batch_size=1", "dataset.batches=4", "method.sequence.evaluate_at=[2,4]"]

ON_RAY = ["runtime.engine=ray", "runtime.ray.workers=2", "runtime.ray.cpus=0.5", "runtime.ray.memory_mb=100"]

EDIT = ["edit", "method.batch_size=6", "dataset.batches=1"]

COMMANDS = {
    "run": [["run"]],
    "sequence": [["run", *SEQUENCE, "method.sequence.history=full", "method.sequence.checkpoint_every=1"]],
    "sequence of an editor": [["run", "method=grace", "method.layers=[1]", *SEQUENCE, "method.sequence.history=none"]],
    "sweep": [["sweep", "method.preservation_weight=1,10"]],
    "sweep --jobs": [["sweep", "method.preservation_weight=1,10", "--jobs", "2"]],
    "run on Ray": [["run", *ON_RAY]],
    "edit --out": [[*EDIT, "--out", "OUT/model"]],
    "export --to checkpoint": [EDIT, ["export", "latest", "--to", "checkpoint", "--out", "OUT/model"]],
    "export --to adapter": [EDIT, ["export", "latest", "--to", "adapter", "--out", "OUT/adapter"]],
    "export --to delta": [EDIT, ["export", "latest", "--to", "delta", "--out", "OUT/delta"]],
    "apply": [
        EDIT,
        ["export", "latest", "--to", "delta", "--out", "OUT/delta"],
        ["apply", "OUT/delta", "--model", "MODEL", "--out", "OUT/model"],
    ],
    "store push": [EDIT, ["store", "push", "edit", "OUT/there"]],
}
"""The last command of each list is killed. The others have run to their end before it.

Commands of a whole run get the arguments that all runs on the tiny model have. OUT is a folder, MODEL the tiny model.
"""


def _commands(name: str, folder: Path, arguments: Callable[..., list[str]], model: Path) -> list[list[str]]:
    """The commands called ``name`` with all their arguments, for a home and a folder to write to below ``folder``."""
    found = []
    for command, *given in COMMANDS[name]:
        words = [word.replace("OUT", str(folder / "out")).replace("MODEL", str(model)) for word in given]
        if command in ("run", "edit", "sweep"):
            options = [word for word in words if "=" not in word]
            words = [*options, *arguments(*(word for word in words if "=" in word))]
        found.append([command, *words])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name, arguments, gpt2_folder, tmp_path, monkeypatch):
    campaign = Campaign(f"kills of `{name}`", few=2)

    def commands(folder: Path) -> list[list[str]]:
        monkeypatch.setenv("FACTSMITH_HOME", str(folder / "home"))
        return _commands(name, folder, arguments, gpt2_folder)

    *before, command = commands(tmp_path / "before")
    for one in before:
        finish(one)
    (tmp_path / "before").mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    seconds = finish(commands(tmp_path / "whole")[-1])
    wanted = left(tmp_path / "whole")
    for case in campaign.cases():
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(case))
        command = commands(folder)[-1]
        kill_at_random(campaign, command, seconds, tmp_path / f"{case}.txt")
        store = Store(folder / "home")
        assert left(folder) == wanted
        assert not [fault for path in store.all_paths() for fault in store.verify(path)]
        assert not [*store.root.glob("staging/*"), *store.root.glob("locks/*.json")]
        assert {path.name for path in folder.iterdir()} <= {"home", "out"}
        campaign.counts["ended as if never killed"] += 1
        shutil.rmtree(folder)
