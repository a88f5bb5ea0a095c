"""Sweeps: what cells share, cells that fail, and tables."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose
from factsmith.flows.reporting.sweeps.results import curves, failures, sweep_tables, write_sweep
from factsmith.flows.run import run_part
from factsmith.flows.sweeps import cell as cell_of_sweep
from factsmith.flows.sweeps import engines
from factsmith.flows.sweeps.cell import Cells
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.lender import Lender
from factsmith.flows.sweeps.sweep import run_sweep
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.pipeline.workspace import Workspace
from tests.reports import cell, report_of
from tests.runs import artifacts, count_positions, run_as_functions

GRID = ("corpus.dynamic_multiplier=2,5", "method=memit,emmet", "method.batch_size=2,3")


@pytest.fixture
def sweep(plain_flows, home, arguments):
    return lambda *more, **given: run_sweep(open_sweep(arguments(*more), **given))


def test_what_cells_share_is_computed_once(sweep, pipeline, store, home, monkeypatch, tmp_path):
    seen = count_positions(monkeypatch)
    report = sweep(*GRID)
    assert len(report.cells) == 8
    assert not failures(report)
    keys = artifacts(store, "keys")
    assert {one.key["layer"] for one in keys} == {0, 1}
    rows = [(one.key["start"], one.key["stop"]) for one in keys if one.key["layer"] == 0]
    assert len(set(rows)) == len(rows), "a key was collected twice"
    facts = sum(one.summary["facts"] for one in artifacts(store, "values"))
    assert facts == 6  # three of a batch, two batches: the first four serve batches of two
    assert len(artifacts(store, "covariance")) == 2 * 2
    assert len(artifacts(store, "factor")) == 2 * 2, "both methods share a lambda"

    seen.clear()
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    again = sweep(*GRID)
    assert not seen
    assert [cell.metrics for cell in again.cells] == [cell.metrics for cell in report.cells]
    assert all(stage.state == "cached" for cell in again.cells for stage in cell.stages)

    # A cell is what the same words come to on their own, and the run of its own is in MLflow.
    alone = pipeline("corpus.dynamic_multiplier=5", "method=emmet", "method.batch_size=2")
    cell = next(one for one in report.cells if list(one.place.values()) == ["5", "emmet", "2"])
    assert cell.metrics == alone.metrics
    assert (cell.facts, cell.tokens) == (4, 5 * artifacts(store, "model")[0].summary["key_width"])
    low, high = cell.intervals["NM"]
    assert low <= cell.metrics["after"]["NM"] <= high
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    logged = client.get_run(cell.mlflow_run_id)
    assert logged.data.tags["mlflow.parentRunId"] == report.mlflow_run_id
    assert logged.data.metrics["after/NM"] == pytest.approx(alone.metrics["after"]["NM"], abs=0.005)
    parent = client.get_run(report.mlflow_run_id)
    assert "method.name" not in parent.data.params
    assert parent.data.params["model.name"] == "local"
    assert {one.path for one in client.list_artifacts(report.mlflow_run_id)} == {
        "config.json", "results.md", "results.csv", "score_by_multiplier.png", "report.html",
    }  # fmt: skip
    history = client.get_metric_history(report.mlflow_run_id, "emmet/batch_3/S")
    assert [one.step for one in sorted(history, key=lambda one: one.step)] == [cell.tokens // 5 * d for d in (2, 5)]


def test_a_cell_that_fails_is_reported_and_the_others_run(sweep):
    grid = ("method=rome,memit", "method.batch_size=1,2", "corpus.tokens=20,2000", "method.layers=[0]")
    report = sweep(*grid, "dataset.batches=1")
    by_place = {tuple(cell.place.values()): cell.error for cell in report.cells}
    assert "writes one fact at a time" in by_place["rome", "2", "20"]
    assert "cannot be factorised" in by_place["memit", "1", "20"]
    assert by_place["rome", "1", "2000"] is by_place["memit", "2", "2000"] is None
    assert sorted(line.partition(" (")[0] for line in failures(report)) == ["2 failed", "3 failed"]
    assert len(sweep_tables(report)[0].rows) == 3


def test_a_cell_that_fails_while_it_runs_is_reported_and_the_others_run(sweep):
    report = sweep("method=alphaedit", "method.null_space.threshold=1e-12,0.1", "dataset.batches=1")
    assert [cell.error is None for cell in report.cells] == [False, True]
    assert "no direction may be written" in str(report.cells[0].error)


def test_cells_may_run_at_once_to_the_same_scores(prefect_server, home, arguments, monkeypatch, tmp_path, forked):
    smaller = arguments("corpus.dynamic_multiplier=2", "method=memit,emmet", "dataset.batches=1")
    grid = arguments("corpus.dynamic_multiplier=2,5", "method=memit,emmet", "dataset.batches=1")
    with monkeypatch.context() as patch:
        run_as_functions(patch)
        one = run_sweep(open_sweep(grid))
        patch.setenv("FACTSMITH_HOME", str(tmp_path / "other"))
        two = run_sweep(open_sweep(grid, jobs=3))
    assert one.run_id is two.run_id is None
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "third"))
    three = run_sweep(open_sweep(smaller, jobs=2))  # in Prefect
    for report, same in ((two, one.cells), (three, one.cells[:2])):
        assert not failures(report)
        for first, other in zip(same, report.cells, strict=True):
            # Which facts share a pass depends on which cell comes first, and with it the last bits of a value vector.
            assert other.metrics["after"] == pytest.approx(first.metrics["after"], abs=1e-2)
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[three.run_id]))
        shown = [found for found in client.read_artifacts(artifact_filter=of_run) if found.type == "table"]
        run_filter = FlowRunFilter.model_validate({"id": {"any_": [three.run_id]}})
        tasks = Counter((one.name, one.state_name) for one in client.read_task_runs(flow_run_filter=run_filter))
    assert tasks["method=memit", "Completed"] == tasks["method=emmet", "Completed"] == 1
    assert sum(count for (name, _), count in tasks.items() if name.startswith("factor")) == 2
    tables = sweep_tables(three)
    assert sorted(found.description for found in shown) == sorted(table.title for table in tables)
    rows = [json.loads(found.data) for found in shown if found.description == tables[0].title]
    assert [list(row.values()) for row in rows[0]] == tables[0].rows


class Watched(Cells):
    """Cells whose processes do what the environment says: one kills itself, or none ever ends."""

    @contextmanager
    def elsewhere(self, number):
        cell_of_sweep.run_part = _watched
        with super().elsewhere(number) as run:
            yield run


def _watched(run, name, **given):
    with run.logged(name, **given):
        if os.environ["WATCHED"] == "endless":
            (run.workspace.store.root.parent / f"{name}.pid").write_text(str(os.getpid()))
            time.sleep(600)
        if name == os.environ["WATCHED"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return run_part(run, name, **given)


@pytest.mark.parametrize("prefect", ["plain_flows", pytest.param("prefect_server", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_a_cell_that_failed(prefect, request, home, arguments, monkeypatch, forked):
    request.getfixturevalue(prefect)
    monkeypatch.setattr(engines, "Cells", Watched)
    monkeypatch.setenv("WATCHED", "method=memit")
    report = run_sweep(open_sweep(arguments("method=memit,emmet,pmet", "dataset.batches=1"), jobs=2))
    failed, emmet, pmet = report.cells
    assert "killed by SIGKILL" in failed.error
    assert emmet.error is pmet.error is None
    assert failures(report)[0].startswith("1 failed (method=memit)")
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    children = client.search_runs(["1"], f"tags.mlflow.parentRunId = '{report.mlflow_run_id}'")
    assert Counter(one.info.status for one in children) == {"KILLED": 1, "FINISHED": 4}  # Each is logged twice here.
    assert client.get_run(report.mlflow_run_id).info.status == "FINISHED"
    assert not list((home / "runs").iterdir())


@pytest.mark.parametrize("prefect", ["plain_flows", pytest.param("prefect_server", marks=pytest.mark.slow)])
def test_a_sweep_that_is_stopped_leaves_no_process(prefect, request, home, arguments, monkeypatch, forked):
    request.getfixturevalue(prefect)
    monkeypatch.setattr(engines, "Cells", Watched)
    monkeypatch.setenv("WATCHED", "endless")
    signs = [home.parent / f"method={name}.pid" for name in ("memit", "emmet")]

    def stop():
        while not all(sign.exists() and sign.read_text() for sign in signs):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(open_sweep(arguments("method=memit,emmet"), jobs=2))
    assert not any(Path(f"/proc/{sign.read_text()}").exists() for sign in signs)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert Counter(one.info.status for one in client.search_runs(["1"])) == {"FAILED": 3}


def test_cells_that_run_at_once_have_devices_to_themselves(arguments, store, monkeypatch):
    two = [torch.device("cpu"), torch.device("meta")]
    monkeypatch.setattr(
        Workspace,
        "devices",
        property(lambda self: two if self.runtime.devices else [torch.device(self.runtime.device)]),
    )
    settings = compose(arguments("runtime.devices=all"))
    assert Lender(store).run(settings).workspace.devices == two
    lenders = [Lender(store, number) for number in range(3)]
    runs = [one.run(settings) for one in lenders]
    assert [run.workspace.devices for run in runs] == [two[:1], two[1:], two[:1]]
    assert len({id(run.model) for run in runs}) == 3
    assert lenders[1].run(settings).model is runs[1].model, "a process keeps its model for the next cell"


def test_no_more_cells_run_at_once_than_fit_the_memory(arguments, home, caplog):
    assert open_sweep(arguments(*GRID), jobs=3, memory_mb=1).jobs == 1
    assert "3 cells at once would need" in caplog.text
    assert open_sweep(arguments(*GRID), jobs=3, memory_mb=1_000_000).jobs == 3


def test_where_no_cell_can_run_nothing_is_written(arguments, home):
    with pytest.raises(InputError, match="writes one fact at a time"):
        open_sweep(arguments("method=rome", "method.batch_size=2,3"))
    with pytest.raises(InputError, match="There is no setting"):
        open_sweep(arguments("method.bach_size=2,3"))
    assert not (home / "mlflow.db").exists()


def test_the_papers_layout_by_hand(tmp_path):
    report = report_of(
        cell(50, m="memit", b=1, d=1), cell(95, m="memit", b=1, d=3), cell(100, m="memit", b=1, d=10),
        cell(80, m="memit", b=16, d=1), cell(94.9, m="memit", b=16, d=3), cell(100, m="memit", b=16, d=10),
        cell(error="singular", m="emmet", b=1, d=1), cell(90, m="emmet", b=1, d=3), cell(90, m="emmet", b=1, d=10),
        cell(error="singular", m="emmet", b=16, d=1), cell(90, m="emmet", b=16, d=3), cell(90, m="emmet", b=16, d=10),
    )  # fmt: skip
    overview, memit, emmet = sweep_tables(report)
    assert overview.columns == ["variant", "batch", "1", "3", "10"]
    assert overview.rows == [
        ["memit", "1", "50.0 !\n48-52", "95.0\n93-97", "100.0\n98-102"],
        ["memit", "16", "80.0 !\n78-82", "94.9 !\n93-97", "100.0\n98-102"],
        ["emmet", "1", "failed", "90.0\n88-92", "90.0\n88-92"],
        ["emmet", "16", "failed", "90.0\n88-92", "90.0\n88-92"],
    ]
    assert memit.rows[0] == ["1", "1", *["100.0/50.0"] * 4, "50%"]
    assert memit.weak == {0, 1, 3}
    assert [row[:2] for row in emmet.rows] == [["3", "1"], ["3", "16"]]
    assert set(curves(report)["memit"]) == {"1", "16"}
    assert failures(report) == [
        "2 failed (method=emmet method.batch_size=1 corpus.dynamic_multiplier=1; "
        "method=emmet method.batch_size=16 corpus.dynamic_multiplier=1):\nsingular"
    ]
    paths = write_sweep(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["results.md", "results.csv", "score_by_multiplier.png"]
    assert "| memit | 1 | 50.0 ! 48-52 |" in paths[0].read_text()
    rows = list(csv.DictReader(paths[1].open()))
    found = [row for row in rows if (row["method.batch_size"], row["corpus.dynamic_multiplier"]) == ("16", "3")]
    assert [(row["phase"], row["value"], row["high"]) for row in found if row["metric"] == "S"] == [
        ("before", "0.0", ""), ("after", "94.9", "96.9"), ("before", "0.0", ""), ("after", "90.0", "92.0"),
    ]  # fmt: skip
    assert sum(row["error"] == "singular" for row in rows) == 2
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_records_that_do_not_tell_the_score_still_make_a_table(tmp_path):
    report = report_of(cell(None, m="memit"), cell(None, m="emmet"))
    (table,) = sweep_tables(report)
    assert table.rows[0][:5] == ["memit", "4", "-", "-", "-"]
    assert len(write_sweep(report, tmp_path)) == 2


def test_own_facts_are_shown_by_the_scores_that_they_have(sweep, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(
        "".join(json.dumps({"subject": n, "prompt": "{} lives in", "target_new": "Rome"}) + "\n" for n in "ABC")
    )
    facts = ("dataset=facts", f"dataset.path={path}", "dataset.batches=null", "dataset.metrics=[counterfact,greedy]")
    plain = sweep(*facts, "corpus.dynamic_multiplier=20,45")
    assert (plain.mean, plain.metrics) == (None, ["Eff*", "FreeEff"])
    table, cost = sweep_tables(plain)
    assert table.columns == ["dynamic_multiplier", "facts", "Eff*", "FreeEff", "KL"]
    assert (cost.columns, len(cost.rows)) == (["dynamic_multiplier", "s an edit"], 2)
    ones = sweep(*facts, "method.batch_size=1", "method.sequence.history=full,none", "method.sequence.evaluate_at=[1]")
    assert [table.title.split(": ")[1].split(" by number")[0] for table in sweep_tables(ones)[2:]] == [
        "Eff* of all facts, percent", "Eff* of the first 100 facts, percent",
        "FreeEff of all facts, percent", "FreeEff of the first 100 facts, percent", "perplexity of held-out text",
        "KL of held-out text, nats",
    ]  # fmt: skip
    assert "S" not in {row["metric"] for row in csv.DictReader(write_sweep(ones, tmp_path / "out")[1].open())}


def test_a_table_by_multiplier_is_of_methods_that_it_makes_a_difference_to(arguments, home, sweep):
    with pytest.raises(InputError, match=r"corpus\.dynamic_multiplier would have no effect[^$]*a method that uses C0"):
        open_sweep(arguments("method=memit-f", "corpus.dynamic_multiplier=2,5"))
    found = open_sweep(arguments("method=memit,memit-f", "corpus.dynamic_multiplier=2,5"))
    assert [found.cells[place][0].place["method"] for place in found.refused] == ["memit-f"] * 2


def test_the_command_line(factsmith, refused, arguments, plain_flows, tmp_path):
    grid = arguments("method=memit,emmet")
    found = factsmith("sweep", *grid, "--out", tmp_path / "out")
    assert found.code == 0, found.err
    assert "emmet" in found.out
    assert (tmp_path / "out" / "results.md").is_file()
    told = factsmith("sweep", *grid, "--json")
    assert [one["place"]["method"] for one in json.loads(told.out)["cells"]] == ["memit", "emmet"]


def test_bad_arguments_leave_nothing_behind(refused, arguments):
    assert "Nothing varies" in refused("sweep", "method=memit")
    assert "There is no method 'memmit'" in refused("sweep", "method=memmit,emmet")
    assert "is not a folder" in refused("sweep", *arguments("method=memit,emmet"), "--out", "pyproject.toml")
