"""What the driver does with workers that are slow, fail or die. ``tests/flows/test_ray.py`` has Ray itself."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import pytest

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.tasks.engine.actor import WorkerError
from factsmith.tasks.engine.pool import Pool
from tests.tasks.engine.fake_ray import FakeRay


class Squares:
    def __init__(self, **about) -> None:
        self.about = {"device": "cpu", **about}

    def errors(self):
        return nullcontext()


def square(worker: Squares, item: int, advance) -> int:
    advance(item)
    return item * item


def pool(ray: FakeRay, workers: int | None = 2, make=Squares, patience: float = 0) -> Pool:
    return Pool(ray, make, {"CPU": 1, "GPU": 0, "memory": 2**30}, workers, patience)


def test_results_are_in_the_order_of_the_items():
    shown: list[int] = []
    assert list(pool(FakeRay()).each(square, range(7), shown.append)) == [n * n for n in range(7)]
    assert sum(shown) == sum(range(7))


def test_without_a_number_there_are_as_many_workers_as_have_room():
    nodes = [{"CPU": 3.0, "memory": 2.0**31}, {"CPU": 8.0}, {"CPU": 2.0, "memory": 2.0**33}]
    assert pool(FakeRay(nodes=nodes), None).size == 2 + 0 + 2


def test_a_worker_that_dies_is_replaced_and_its_item_done_again_but_shown_once():
    tried: Counter[int] = Counter()

    def dies(name: str, *given) -> bool:
        if name != "run":
            return False
        tried[given[0]] += 1
        return given[0] == 3 and tried[3] <= 2

    ray, shown = FakeRay(dies), []
    assert list(pool(ray).each(square, range(5), shown.append)) == [0, 1, 4, 9, 16]
    assert tried == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1}
    assert len(ray.made) == 4  # two, and two that replace those that died
    assert sum(shown) == sum(range(5))


def test_an_item_that_workers_die_of_ends_the_run():
    ray = FakeRay(lambda name, *given: name == "run" and given[0] == 1)
    with pytest.raises(InputError, match="3 workers have died.*at the same work") as error:
        list(pool(ray).each(square, range(4)))
    assert "runtime.ray.memory_mb" in str(error.value)
    assert set(ray.made) == set(ray.killed)


def test_workers_that_die_before_they_begin_end_the_run():
    with pytest.raises(FactsmithError, match="3 workers have died"):
        list(pool(FakeRay(lambda name, *_: name == "begin")).each(square, [1]))


def refuse(worker: Squares, item: int, advance) -> None:
    raise InputError("Layer 3 is no good.", got=item, remedy="another one") if item else ValueError("ours")


def test_what_a_user_causes_arrives_as_it_was_raised():
    ray = FakeRay()
    with pytest.raises(InputError) as error:
        list(pool(ray).each(refuse, [5]))
    assert str(error.value) == "Layer 3 is no good.\n  got: 5\n  remedy: another one"
    assert error.value.details == {"got": "5", "remedy": "another one"}
    assert set(ray.made) == set(ray.killed)


def test_a_bug_arrives_with_its_traceback():
    with pytest.raises(WorkerError, match="(?s)Traceback.*in refuse.*ValueError: ours"):
        list(pool(FakeRay()).each(refuse, [0]))


def test_whoever_stops_asking_ends_the_workers():
    ray = FakeRay()
    results = pool(ray).each(square, range(100))
    next(results)
    results.close()
    assert set(ray.made) == set(ray.killed)


def test_workers_that_differ_are_refused():
    made = iter([1024, 4096])
    with pytest.raises(InputError, match=r"(?s)differ in their most_tokens.*1024 and 4096"):
        list(pool(FakeRay(), make=lambda: Squares(most_tokens=next(made))).each(square, range(4)))


def test_no_room_is_said_with_what_is_there():
    ray = FakeRay(nodes=[{"CPU": 0.5, "memory": 2.0**33}])
    ray.wait = lambda calls, **_: ([], calls)
    with pytest.raises(InputError, match=r"needs 1 CPU, 1,024 MiB of memory; 1 nodes have at most 0.5 CPU"):
        list(pool(ray).each(square, [1]))
