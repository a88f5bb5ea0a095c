"""Bytes of a store that change behind its back are found by ``store verify``, and no run uses them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from factsmith.artifacts.errors import FactsmithError
from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.runs import contents


def _flip(file: Path, random: Random) -> None:
    content = bytearray(file.read_bytes())
    place = random.randrange(len(content))
    content[place] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def _truncate(file: Path, random: Random) -> None:
    os.truncate(file, random.randrange(file.stat().st_size))


def _delete(file: Path, random: Random) -> None:
    file.unlink()


DAMAGE = {"flipped": _flip, "truncated": _truncate, "deleted": _delete}


def _verified(store: Store) -> list[str]:
    """What ``store verify`` finds."""
    return [fault for path in store.all_paths() for fault in store.verify(path)]


def _refused(pipeline: Callable[[], object]) -> str | None:
    """What a run says if it stops."""
    try:
        pipeline()
    except FactsmithError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_every_damage_is_found_and_mended(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "whole"))
    pipeline()
    wanted = contents(Store(tmp_path / "whole"))
    campaign = Campaign("damage", few=6)
    for case in campaign.cases():
        home = shutil.copytree(tmp_path / "whole", tmp_path / str(case))
        monkeypatch.setenv("FACTSMITH_HOME", str(home))
        store = Store(home)
        assert not _verified(store)
        file = campaign.random.choice(
            [one for path in store.all_paths() for one in sorted(path.rglob("*")) if one.is_file()]
        )
        kind = campaign.random.choice(sorted(DAMAGE))
        before = file.stat()
        DAMAGE[kind](file, campaign.random)
        if file.exists() and campaign.random.random() < 0.5:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            campaign.counts["with the old time"] += 1
        assert any(file.name in fault for fault in _verified(store)), f"{file} was {kind}"
        campaign.counts[f"{kind}, found"] += 1
        if (said := _refused(pipeline)) is not None:  # It may stop, as long as it says what is wrong.
            assert file.name in said
            campaign.counts["refused"] += 1
            pipeline()
        there = {name: content for name, content in contents(store).items() if name in wanted}
        # C0 is there, so its keys are not needed.
        missing = {name for name in wanted.keys() - there.keys() if not name.startswith("keys/")}
        assert not missing
        assert there.items() <= wanted.items()
        assert not _verified(store)
        campaign.counts["mended" if there == wanted else "keys that are not needed any more"] += 1
        shutil.rmtree(home)
