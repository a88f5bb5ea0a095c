"""Progress of long work is published, that of short work is not."""

from __future__ import annotations

from factsmith.tasks.pipeline import progress as module
from factsmith.tasks.pipeline.progress import progress, published_by


def test_long_work_is_published_now_and_then_and_at_its_end(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    seen: list[tuple[str, float]] = []
    with published_by(lambda *one: seen.append(one)), progress("keys", 200) as advance:
        for second in range(0, 40, 2):
            now = float(second)
            advance(10)
    assert [name for name, _ in seen] == ["keys"] * len(seen)
    shares = [share for _, share in seen]
    assert shares == [60.0, 75.0, 90.0, 100.0]


def test_short_work_is_not(monkeypatch):
    seen: list[tuple[str, float]] = []
    with published_by(lambda *one: seen.append(one)), progress("keys", 2) as advance:
        advance(1)
        advance(1)
    with progress("keys", 1) as advance:
        advance(1)
    assert seen == []
