"""Workers take items in turn, and what they give is in the order of the items."""

from __future__ import annotations

import threading
import time
from itertools import count

import pytest

from factsmith.tasks.pipeline.turns import in_turn, on_shares

WORKERS = ["slow", "quick", "quicker"]


def square(worker: str, item: int) -> tuple[str, int]:
    if worker == "slow":
        time.sleep(0.01)
    return worker, item * item


@pytest.mark.parametrize("workers", [WORKERS[:1], WORKERS[:2], WORKERS])
@pytest.mark.parametrize("items", [0, 1, 2, 13])
def test_each_takes_its_items_however_quick_it_is(workers, items):
    found = list(in_turn(workers, square, range(items)))
    assert found == [(workers[item % len(workers)], item * item) for item in range(items)]


def test_a_single_worker_may_work_ahead():
    begun: list[int] = []

    def work(_: str, item: int) -> int:
        begun.append(item)
        return item

    results = in_turn(["one"], work, range(9), ahead=True)
    assert next(results) == 0
    until = time.monotonic() + 60
    while begun != [0, 1] and time.monotonic() < until:
        time.sleep(0.01)
    assert begun == [0, 1]  # while the first result is used
    assert list(results) == list(range(1, 9))
    assert next(in_turn(["one"], lambda _, item: threading.current_thread(), [0])) is threading.main_thread()


def test_items_may_continue_earlier_ones():
    found = [*in_turn(WORKERS, square, range(4)), *in_turn(WORKERS, square, range(4, 9), first=4)]
    assert found == list(in_turn(WORKERS, square, range(9)))


def test_each_has_a_thread_that_begins_once():
    begun: list[str] = []
    used = set(in_turn(WORKERS, lambda worker, _: (worker, threading.current_thread().name), range(9),
                       begin=lambda: begun.append(threading.current_thread().name)))  # fmt: skip
    assert len(used) == len(begun) == 3
    assert {name for _, name in used} == set(begun)


def test_one_worker_does_nothing_ahead():
    done: list[int] = []
    results = in_turn(WORKERS[:1], lambda _, item: done.append(item), count())
    next(results)
    assert done == [0]


def test_items_are_taken_only_as_they_are_worked_on():
    taken: list[int] = []
    results = in_turn(WORKERS[1:], square, (taken.append(item) or item for item in count()))
    next(results)
    assert len(taken) <= 5
    results.close()


def test_the_error_of_the_first_item_is_raised_and_no_further_one_is_begun():
    done: list[int] = []

    def fails(worker: str, item: int) -> None:
        done.append(item)
        if item >= 2:
            time.sleep(0.05 if item == 2 else 0)
            raise ValueError(item)

    before = threading.active_count()
    with pytest.raises(ValueError, match="^2$"):
        list(in_turn(WORKERS, fails, range(100)))
    assert max(done) <= 8
    assert threading.active_count() == before


def test_an_interrupted_caller_leaves_no_thread():
    before = threading.active_count()
    results = in_turn(WORKERS, square, count())
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert threading.active_count() == before


@pytest.mark.parametrize("items", [0, 2, 3, 7])
def test_shares_are_even_and_in_order(items):
    done: list[int] = []

    def work(_: str, share: range, advance) -> list[int]:
        advance(len(share))
        return list(share)

    shares = on_shares(WORKERS, work, range(items), done.append)
    assert sum(done) == items
    assert [item for share in shares for item in share] == list(range(items))
    sizes = [len(share) for share in shares]
    assert len(sizes) == min(items, 3)
    assert not sizes or min(sizes) > 0
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_a_worker_that_fails_stops_the_others():
    done: list[int] = []

    def work(worker: str, share: range, advance) -> None:
        if worker == "slow":
            raise ValueError("no more")
        for _ in range(1000):
            time.sleep(0.01)
            advance(1)

    with pytest.raises(ValueError, match="no more"):
        on_shares(WORKERS, work, range(6), done.append)
    assert len(done) < 500
