"""A signal that arrives in a finaliser, where Python drops what is raised, stops the process nevertheless."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_FINALISER = """
import os, signal, sys, time
from factsmith.tasks.pipeline.signals import Terminated, deliver_lost_signals

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.01)  # the handler has run, and what it raised is dropped at the end

def work():
    one = Finalised()
    del one
    print("finalised", flush=True)
    time.sleep(20)
    print("the signal was lost")

def interrupt(*_):
    raise Terminated

signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, signal.default_int_handler)
deliver_lost_signals()
deliver_lost_signals()  # once is enough, twice does no harm
"""

_OURS = """
try:
    work()
except KeyboardInterrupt:
    print("stopped")
"""

_PREFECTS = """
from prefect.utilities.engine import capture_sigterm
try:
    with capture_sigterm():
        try:
            work()
        except BaseException as error:
            print(type(error).__name__)
            raise
except KeyboardInterrupt:
    print("stopped")
"""


def run(program: str, number: signal.Signals) -> str:
    command = [sys.executable, "-c", _FINALISER.format(number=number.name) + program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_dropped_is_sent_again(number):
    assert run(_OURS, number).split("\n")[:2] == ["finalised", "stopped"]


def test_what_prefect_raises_is_not_lost_either():
    assert run(_PREFECTS, signal.SIGTERM).split("\n")[:3] == ["finalised", "TerminationSignal", "stopped"]


def test_other_exceptions_of_finalisers_are_reported_as_before():
    program = """
class Broken:
    def __del__(self):
        raise ValueError("broken")
one = Broken()
del one
"""
    command = [sys.executable, "-c", _FINALISER.format(number="SIGTERM") + program]
    assert "ValueError: broken" in subprocess.run(command, check=True, capture_output=True, text=True).stderr
