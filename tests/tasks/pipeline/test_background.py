"""Work in a thread: in its order, waited for, and its errors are raised."""

from __future__ import annotations

import threading

import pytest
import torch

from factsmith.tasks.pipeline.background import Background


def test_calls_end_in_their_order_while_the_caller_goes_on():
    done: list[int] = []
    go_on = threading.Event()

    def slow(number: int) -> None:
        assert go_on.wait(60)
        done.append(number)

    with Background() as background:
        background.call(slow, 1)
        assert done == []  # The caller goes on while the call waits.
        go_on.set()
        background.call(slow, 2)
        assert done[0] == 1
    assert done == [1, 2]


def fail() -> None:
    raise OSError("no space left on device")


def test_an_error_is_raised_by_every_later_call_or_at_the_end():
    called: list[int] = []
    with pytest.raises(OSError, match="no space"), Background() as background:
        background.call(fail)
        for number in range(2):
            with pytest.raises(OSError, match="no space"):
                background.call(called.append, number)
    assert not called, "what follows a call that failed may need its result"
    with pytest.raises(OSError, match="no space"), Background() as background:
        background.call(fail)


def test_the_callers_own_error_comes_first():
    done: list[int] = []
    with pytest.raises(ValueError, match="its own"), Background() as background:
        background.call(done.append, 1)
        background.call(fail)
        raise ValueError("its own")
    assert done == [1]


def test_the_thread_keeps_to_its_limit_of_cpu_threads():
    """Each Python thread has its own limit."""
    found: list[int] = []
    with Background(lambda: torch.set_num_threads(1)) as background:
        background.call(lambda: found.append(torch.get_num_threads()))
    assert found == [1]
