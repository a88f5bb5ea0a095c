"""Rows are computed once and shared."""

from __future__ import annotations

import pytest

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import RowSeries
from factsmith.artifacts.store import Store

SERIES = Series("scores", 1, {})


class Builder:
    def __init__(self, fail_after: int | None = None) -> None:
        self.built: list[list[str]] = []
        self.fail_after = fail_after

    def __call__(self, draft, digests) -> None:
        if self.fail_after == len(self.built):
            raise KeyboardInterrupt
        self.built.append(list(digests))
        (draft.path / "rows").write_text("\n".join(digests))


def read(found, digest) -> str:
    row = found[digest]
    return (row.artifact.path / "rows").read_text().split("\n")[row.place]


def test_only_what_is_missing_is_built(tmp_path):
    rows = RowSeries(Store(tmp_path), SERIES)
    first, later = Builder(), Builder()
    assert rows.get_or_build(["a", "b"], first, at_once=10)[1] == 2
    found, built = rows.get_or_build(["c", "b", "a", "d", "c"], later, at_once=10)
    assert built == 2
    assert later.built == [["c", "d"]]
    assert all(read(found, digest) == digest for digest in "abcd")
    assert rows.get_or_build(["d", "a"], Builder(fail_after=0), at_once=1)[1] == 0


def test_what_was_built_before_an_interruption_stays(tmp_path):
    rows = RowSeries(Store(tmp_path), SERIES)
    with pytest.raises(KeyboardInterrupt):
        rows.get_or_build(list("abcdef"), Builder(fail_after=2), at_once=2)
    rest = Builder()
    assert rows.get_or_build(list("abcdef"), rest, at_once=2)[1] == 2
    assert rest.built == [["e", "f"]]


def test_a_damaged_group_is_built_again(tmp_path):
    rows = RowSeries(Store(tmp_path), SERIES)
    found, _ = rows.get_or_build(list("abcd"), Builder(), at_once=2)
    (found["a"].artifact.path / "rows").write_text("b\na")
    again = Builder()
    found, built = rows.get_or_build(list("abcd"), again, at_once=2)
    assert built == 2
    assert again.built == [["a", "b"]]
    assert read(found, "a") == "a"
