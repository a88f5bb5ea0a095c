"""Sweeps of sequences: curves in tables, files and MLflow, and collapse."""

from __future__ import annotations

import csv

import pytest
from mlflow import MlflowClient
from rich.console import Console

from factsmith.flows.configuration.composition import compose
from factsmith.flows.reporting.curves import collapse
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps.results import sweep_tables, write_sweep
from factsmith.flows.reporting.terminal import trajectory_table
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.sweep import run_sweep
from factsmith.tasks.tracking.tracker import metric_name

WORDS = ("method.batch_size=1", "dataset.batches=3", "method.sequence.evaluate_at=[1]")


def cell(method: str, history: str, course: dict[str, dict[int, float]]) -> CellReport:
    metrics = {"before": {"S": 0.0}, "after": {"S": 50.0}}
    place = {"method": method, "method.sequence.history": history}
    return CellReport(place=place, metrics=metrics, intervals={"S": (40, 60)}, trajectory=course)


@pytest.fixture
def report() -> SweepReport:
    good = {"sequence/S": {1: 90, 4: 80}, "sequence/perplexity": {0: 2, 1: 3, 4: 19.9}}
    bad = {"sequence/S": {1: 90, 8: 5}, "sequence/perplexity": {0: 2, 1: 20, 8: float("inf")}}
    return SweepReport(
        run_id="r", mlflow_run_id="m", name="by-hand", metrics=["S"], mean=("S", []),
        axes=[["method", "dataset.batches"], ["method.sequence.history"]],
        cells=[cell("memit", "full", good), cell("memit", "none", bad)],
    )  # fmt: skip


def test_a_sweep_shows_how_each_sequence_went(home, arguments, pipeline, tmp_path):
    few = "method.low_rank.n_samples=300"
    grid = arguments(*WORDS, "method=memit,memit-f", "method.sequence.history=full,none", few)
    found = run_sweep(open_sweep(grid))
    assert [one.error for one in found.cells] == [None] * 4
    alone = pipeline(*WORDS, "method=memit", "method.sequence.history=none", few)
    assert found.cells[1].trajectory == alone.trajectory
    assert list(alone.trajectory["sequence/perplexity"]) == [0, 1, 3]
    unedited = {cell.trajectory["sequence/perplexity"][0] for cell in found.cells}
    assert len(unedited) == 1, "methods that read more of the corpus or less are told by the same text"
    assert alone.trajectory["sequence/ES"][3] == alone.metrics["after"]["ES"]

    titles = [table.title for table in sweep_tables(found)]
    assert [title.partition(": ")[2] for title in titles[1:3]] == ["other metrics, percent", "cost"]
    assert [title.partition(": ")[2].partition(" by number")[0] for title in titles[3:]] == [
        "S of all facts, percent", "S of the first 100 facts, percent", "perplexity of held-out text",
        "KL of held-out text, nats",
    ]  # fmt: skip
    written = {path.name: path for path in write_sweep(found, tmp_path / "out")}
    assert {"sequences.csv", "sequences.png"} <= set(written)
    with written["sequences.csv"].open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "memit-f" and row["edits"] == "3"]
    last = {row["curve"]: float(row["value"]) for row in rows if row["method.sequence.history"] == "full"}
    assert last["sequence/PS"] == found.cells[2].metrics["after"]["PS"]
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    history = client.get_metric_history(found.mlflow_run_id, "memit-f full/sequence/perplexity")
    assert {one.step: one.value for one in history} == found.cells[2].trajectory["sequence/perplexity"]


def test_tables_by_hand(report):
    first, so_far, perplexity = sweep_tables(report)
    assert so_far.columns == ["method", "history", "1", "4", "8", "collapse"]
    assert so_far.rows == [["memit", "full", "90.0", "80.0", "", "-"], ["memit", "none", "90.0", "", "5.0", "1"]]
    assert perplexity.rows[1] == ["memit", "none", "2.000", "20.00", "", "inf", "1"]
    assert so_far.weak == perplexity.weak == {1}
    assert not first.weak


def test_a_table_of_many_counts_fits_a_terminal(report):
    points = {
        "sequence/S": dict.fromkeys(range(20, 201, 20), 50.0),
        "sequence/perplexity": dict.fromkeys(range(11), 2.0),
    }
    many = report.model_copy(update={"cells": [cell("memit", "full", points)]})
    _, so_far, perplexity = sweep_tables(many)
    assert so_far.columns[2:-1] == ["40", "80", "120", "160", "200"]
    assert perplexity.columns[2:-1] == ["0", "1", "4", "7", "10"]


@pytest.mark.parametrize(
    ("points", "after"),
    [({0: 2, 5: 19.9}, None), ({0: 2, 5: 20, 6: 3}, 5), ({0: 2, 5: 3, 9: float("nan")}, 9), ({}, None)],
)
def test_a_model_has_collapsed_once_text_is_ten_times_as_perplexing(points, after):
    assert collapse({"sequence/perplexity": points} if points else {}) == after


def test_a_run_shows_its_trajectory(arguments, home):
    settings = compose(arguments())
    course = {"sequence/S": dict.fromkeys(range(1, 101), 50.0), "sequence/perplexity": {0: 2.0, 100: 30.0}}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(trajectory_table(course, settings))
    rows = [line.split("│")[1:-1] for line in captured.get().splitlines() if line.startswith("│")]
    assert len(rows) == 17  # every sixth of 101, from the last one
    assert [cell.strip() for cell in rows[-1]] == ["100", "50", "30"]


def test_a_trajectory_without_a_mean_shows_what_it_has(arguments, home):
    settings = compose(arguments("dataset.metrics=[counterfact,greedy]"))
    course = {"sequence/Eff*": {1: 100.0}, "sequence/FreeEff": {1: 50.0}, "sequence/perplexity": {0: 2.0, 1: 2.5}}
    assert [one.header for one in trajectory_table(course, settings).columns] == [
        "edits",
        "Eff*",
        "FreeEff",
        "perplexity",
    ]


@pytest.mark.parametrize("name", ["Eff*", "corpus.sampling=first, corpus.blocks=[1]/batch_1/S", "é (x) {y}"])
def test_mlflow_takes_every_name(name):
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(metric_name(name))
