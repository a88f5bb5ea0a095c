"""Lists and comparisons of earlier runs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from factsmith.flows.precompute import precompute
from factsmith.flows.reporting.runs import grouped, runs_table
from factsmith.tasks.evaluation.metrics.counterfact import CounterFact
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.tracking.tracker import Tracker
from tests.runs import contents

CONTENT = {"model": {"name": "local"}, "method": {"name": "memit", "batch_size": 3}, "dataset": {"batches": 2}}


def log(home, name: str, *, parent: str | None = None, experiment: str = "factsmith", flow: str = "run") -> Tracker:
    """A run as the log knows it, of nothing."""
    return Tracker(home, experiment=experiment, name=name, flow=flow, settings=CONTENT, parent=parent)


def past(name: str, parent: str | None = None) -> PastRun:
    return PastRun(name, name, "run", datetime.now(UTC), "FINISHED", {}, {}, parent, None, None)


# ---------------------------------------------------------------------------------------------------- the list


def test_parts_are_listed_below_their_run():
    runs = [
        past("new"),
        past("trial 1", "tune"),
        past("orphan", "gone"),
        past("trial 0", "tune"),
        past("tune"),
        past("old"),
    ]
    assert [[(depth, run.id) for depth, run in family] for family in grouped(runs)] == [
        [(0, "new")],
        [(0, "orphan")],
        [(0, "tune"), (1, "trial 0"), (1, "trial 1")],
        [(0, "old")],
    ]


def test_runs_are_grouped(factsmith, home):
    first = log(home, "tune memit on local", flow="tune")
    trial = log(home, "trial 0", parent=first.run_id, flow="trial")
    trial.metrics({"after/S": 12.34})
    trial.tags({"score": "S"})
    trial.end(failed=False)
    log(home, "run memit on local").end(failed=True)
    log(home, "precompute memit on local", flow="precompute", experiment="other").end(failed=False)

    def cells(*arguments: str) -> list[list[str]]:
        lines = [line for line in factsmith("runs", *arguments).out.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    assert [row[2:] for row in cells()] == [
        ["precompute memit on local", "-", "finished"],
        ["run memit on local", "2×3", "failed"],
        ["tune memit on local (1 part)", "2×3", "running"],
    ]
    whole = [["tune memit on local", "2×3", "running"], ["└ trial 0", "2×3", "S  12.3"]]
    for named in (first, trial):
        assert [row[2:] for row in cells(named.run_id[:8])] == whole
    assert cells()[2][0] == first.run_id[:8]
    document = json.loads(factsmith("runs", "--json", "--experiment", "factsmith").out)
    assert [run["name"] for run in document["runs"]] == ["run memit on local", "tune memit on local", "trial 0"]
    assert document["runs"][2]["score"] == {"metric": "S", "value": 12.34}
    assert document["runs"][2]["parent"] == first.run_id
    assert document["runs"][0]["score"] is None
    assert document["runs"][0]["settings"]["method.batch_size"] == "3"
    one = factsmith("runs", "--limit", "1").out
    assert "precompute" in one
    assert "tune" not in one
    assert "1 of 3 runs: --limit 3 shows all" in one


def test_runs_of_other_years_show_the_year():
    old = PastRun("a" * 32, "run", "run", datetime(2001, 7, 9, 12, tzinfo=UTC), "KILLED", {}, {}, None, None, None)
    (started,) = runs_table([[(0, old)]], total=1, parts=False).columns[1].cells
    assert started == "09 Jul  2001"


def test_how_many_facts_a_run_is_given():
    for size, batches, told in (("16", "1", "16"), ("16", "3", "3×16"), ("1", "null", "all×1"), ("all", "1", "all")):
        given = {"method.batch_size": size, "dataset.batches": batches}
        run = replace(past("run"), params=given)
        assert list(runs_table([[(0, run)]], total=1, parts=False).columns[3].cells) == [told]
        for unknown in (replace(run, flow="precompute"), replace(run, params={"method.batch_size": size})):
            assert list(runs_table([[(0, unknown)]], total=1, parts=False).columns[3].cells) == ["-"]


def test_an_experiment_that_is_not_there(factsmith, refused, home):
    log(home, "run memit on local")
    assert "did you mean 'factsmith'" in refused("runs", "--experiment", "factsmth", clean=False)


def test_no_runs_yet(refused):
    assert "There are no runs" in refused("runs")
    assert "There are no runs" in refused("compare", "latest", "abcd")


# ---------------------------------------------------------------------------------------------- runs side by side


def test_two_runs_side_by_side(ran, pipeline, factsmith, store):
    first, second = ran, pipeline("method=emmet", "method.preservation_weight=3")
    held = contents(store)
    names = [first.mlflow_run_id[:8], "latest"]
    document = json.loads(factsmith("compare", *names, "--json").out)
    assert set(document) == {"runs", "settings", "scores", "means", "drift", "abilities"}
    assert [run["id"] for run in document["runs"]] == [first.mlflow_run_id, second.mlflow_run_id]
    assert [(run["facts"], run["shared"], run["paired"]) for run in document["runs"]] == [(6, 6, True)] * 2
    assert document["settings"] == {
        "method.name": ["memit", "emmet"],
        "method.preservation_weight": ["1.0", "3.0"],
        "method.slack": ["1.0", "0.1"],
        "method.slack_of_one": ["null", "0.0"],
    }
    assert set(document["scores"]) == {"after"}
    for name, (one, other) in document["scores"]["after"].items():
        assert one["interval"]["value"] == first.metrics["after"][name]
        assert other["interval"]["value"] == second.metrics["after"][name]
        assert one["difference"] is one["noise"] is None
        assert other["difference"]["low"] <= other["difference"]["high"]
    table = factsmith("compare", *names).out
    for word in (*names[:1], "memit", "emmet", "paired", "Spe*", "not corrected"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 80
    assert factsmith("compare", *names, "--markdown").out.startswith("**runs**\n\n| run |")
    grouped = json.loads(factsmith("runs", "--json").out)["runs"]
    assert [run["score"] for run in grouped] == [
        {"metric": "S", "value": round(report.metrics["after"]["S"], 2)} for report in (second, first)
    ]
    assert contents(store) == held


def test_the_same_run_again_differs_in_nothing_and_other_facts_are_reported(ran, pipeline, factsmith):
    first, again, fewer = ran, pipeline(), pipeline("dataset.batches=1")
    ids = [report.mlflow_run_id for report in (first, again, fewer)]
    document = json.loads(factsmith("compare", *ids, "--json").out)
    assert document["settings"] == {"dataset.batches": ["2", "2", "1"]}
    assert [run["paired"] for run in document["runs"]] == [True, True, False]
    assert [run["shared"] for run in document["runs"]] == [6, 6, 3]
    for _, same, _ in document["scores"]["after"].values():
        assert same["difference"] == {"value": 0, "low": 0, "high": 0}
        assert same["noise"]
    assert "runs with the same settings" in factsmith("compare", *ids[:2]).out


def test_runs_that_cannot_be_compared(pipeline, refused, arguments, home, monkeypatch):
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.edit import edit

    report = pipeline()
    for given in ([], [report.mlflow_run_id]):
        assert "A comparison needs two runs" in refused("compare", *given, clean=False)
    assert "is given twice" in refused("compare", report.mlflow_run_id, "latest", clean=False)
    assert "No runs match 'zzzz'" in refused("compare", "latest", "zzzz", clean=False)
    both = refused("compare", report.mlflow_run_id, "latest", "--markdown", "--json", clean=False)
    assert "exclude each other" in both
    precompute(compose(arguments()))
    message = refused("compare", report.mlflow_run_id, "latest", clean=False)
    assert "has no scores to compare" in message
    assert "got: precompute · memit · local · " in message
    assert "more, FINISHED" in message
    edited = edit(compose(arguments()))
    message = refused("compare", report.mlflow_run_id, "latest", clean=False)
    assert f"factsmith evaluate {edited.mlflow_run_id[:8]}" in message
    pipeline("method=emmet")
    monkeypatch.setattr(CounterFact, "metrics", {"ES": "efficacy"})
    message = refused("compare", report.mlflow_run_id, "latest", clean=False)
    assert "scored by another version" in message
    assert "Eff*, " in message
