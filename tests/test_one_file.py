"""A new method, editor, architecture family, dataset format, metric family or ability task is one new file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.tasks.abilities import task, tasks
from factsmith.tasks.abilities.reading import select_examples
from factsmith.tasks.abilities.settings import AbilitySettings
from factsmith.tasks.decoder import families, layout
from factsmith.tasks.edit import refiners
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.editors import editor, methods
from factsmith.tasks.evaluation import family, metrics
from factsmith.tasks.facts import datasets
from factsmith.tasks.facts.selection import load_records
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.planning.run import Run

FAMILY = """
from factsmith.tasks.decoder.families.gpt2 import GPT2Layout


class NewLayout(GPT2Layout):
    model_type = "gpt_new"


LAYOUT = NewLayout()
"""

DATASET = """
from factsmith.tasks.facts.reading import parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest


def load(settings):
    return parse_records(settings.required_path(), parse)


def parse(raw):
    return Record(EditRequest(raw.index, raw.text("s"), "{} is", raw.text("o")), {"rewrite": ()}, raw.index)
"""

METRIC = """
from factsmith.tasks.evaluation.answers import AnswerAccuracy


class Rewrites(AnswerAccuracy):
    name = "rewrites"
    version = 1
    metric_of = {"rewrite": "Rew"}
    kinds = tuple(metric_of)
    metrics = {"Rew": "share of correct tokens of the new answer"}


FAMILY = Rewrites()
"""

TASK = """
from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim


class Parity(AbilityTask):
    name = "parity"
    title = "Parity"
    labels = ("even", "odd")
    hub = HubSplit("someone/parity", "default", "test")

    def parse(self, raw):
        return Example(f"The number {verbatim(raw, 'number')} is", label_index(raw, "label", (0, 1)))


TASK = Parity()
"""

EDITOR = """
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.editors.editor import Editor, Fit, Written


class Nothing(Editor):
    name = "nothing"
    version = 1

    def write(self, decoder, before, task):
        return Written(WeightEdit({}), [Fit(0, 0.0) for _ in task.requests])


EDITOR = Nothing()
"""

REFINER = """
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.refiners import Refiner


class Half(Refiner):
    name = "half"
    of_batches = True

    def refine(self, layer, delta, weight):
        return LowRankDelta(delta.left / 2, delta.right)


REFINER = Half
"""

METHOD = """
# MEMIT with a looser fit.
name: loose
preservation: full
slack: 2
"""


CACHED = (layout._families, family._families, task._tasks, editor._editors)


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Adds a module to a package, as a new file in its folder would."""

    def call(package, name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        for cached in CACHED:
            cached.cache_clear()

    yield call
    for cached in CACHED:
        cached.cache_clear()


def test_an_architecture_family(add):
    add(families, "gpt_new", FAMILY)
    config = GPT2Config()
    config.model_type = "gpt_new"
    assert layout.layout_for(config, "here").model_type == "gpt_new"


def test_a_dataset_format(add, tmp_path):
    add(datasets, "triples", DATASET)
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"s": "Ilo", "o": "golf"}]))
    (record,) = load_records(DatasetSettings(name="mine", format="triples", path=path))
    assert record.request.prompt == "Ilo is"


def test_a_metric_family(add):
    add(metrics, "rewrites", METRIC)
    (found,) = family.load_families(["rewrites"])
    assert list(found.metrics) == ["Rew"]


def test_an_ability_task(add, tmp_path):
    add(tasks, "parity", TASK)
    (tmp_path / "parity.jsonl").write_text('{"number": "7", "label": 1}')
    (found,) = task.load_tasks(["parity"])
    (example,) = select_examples(found, AbilitySettings(tasks=["parity"], path=tmp_path))
    assert (example.prompt, found.labels[example.label]) == ("The number 7 is", "odd")


def test_an_editor(add, tmp_path):
    add(methods, "nothing", EDITOR)
    path = tmp_path / "nothing.yaml"
    path.write_text("name: nothing\neditor: nothing\n")
    settings = compose([f"method={path}"])
    assert Run(settings, Store(tmp_path)).editor.name == "nothing"
    assert settings.method.reads == "nothing"


def test_a_refiner(add):
    add(refiners, "half", REFINER)
    refiner = refiners.load_refiner(compose(["method.refiner=half"]).method)
    delta = LowRankDelta(torch.ones(3, 1), torch.ones(4, 1))
    assert torch.equal(refiner.refine(0, delta, torch.zeros(3, 4)).dense(), delta.dense() / 2)


def test_a_method(tmp_path):
    path = tmp_path / "loose.yaml"
    path.write_text(METHOD)
    method = compose([f"method={path}"]).method
    assert (method.name, method.slack, method.layers) == ("loose", 2, [0, 1, 2])
