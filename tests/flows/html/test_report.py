"""The report of a run: what is in it, and that nothing in it is more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from mlflow import MlflowClient

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.html import document
from factsmith.flows.html.document import Document, render
from factsmith.flows.html.sections import facts as facts_module
from factsmith.flows.html.sections.facts import facts
from factsmith.flows.html.sections.lineage import lineage
from factsmith.flows.html.sections.trajectory import trajectory
from factsmith.flows.precompute import precompute
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.sweep import run_sweep
from factsmith.tasks.evaluation.answers_stage import Answer
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.tracking.runs import find_run

SCRIPT = "<script>alert(1)</script>"
FACTS = [
    {"subject": SCRIPT, "prompt": "{} speaks", "target_new": "Danish", "target_true": "Greek"},
    {"subject": "Ilo", "prompt": 'The "sport" of {} is', "target_new": "a & b", "target_true": "rowing"},
]


class Text(HTMLParser):
    """The text of each table by the section that it is in, and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._section = ""
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.tables[self._section] = []
        elif tag == "tr" and self._section:
            self.tables[self._section].append([])
        elif tag in ("td", "th") and self._section:
            self.tables[self._section][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.tables[self._section][-1][-1] += data.strip()


def test_a_command_writes_a_report_of_all_that_a_run_did(
    factsmith, stages_in_mlflow, plain_flows, arguments, home, tmp_path
):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    given = [word for word in arguments() if not word.startswith("dataset")]
    given = [word for word in given if not word.startswith("method.batch_size")]
    words = ["dataset=facts", f"dataset.path={tmp_path / 'facts.json'}", "dataset.metrics=[counterfact,greedy]"]
    file = tmp_path / "run.html"
    result = factsmith("run", *given, *words, "method.batch_size=1", "--report", file)
    assert result.code == 0, result
    assert f"Report: {file}" in " ".join(result.out.split())
    html = file.read_text()
    assert SCRIPT not in html
    found = Text(html)
    assert [tag for tag, _ in found.tags].count("script") == 1

    # The policy allows the style and the script that are there, and no request.
    (policy,) = (one["content"] for _, one in found.tags if one.get("http-equiv") == "Content-Security-Policy")
    for tag in ("style", "script"):
        text = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert not any({"src", "style", "onclick"} & one.keys() for _, one in found.tags)
    assert all((one.get("href") or "#").startswith("#") for _, one in found.tags)

    heading, first, second, *_ = (row for row in found.tables["facts"] if len(row) > 2)
    row = dict(zip(heading, first, strict=True))
    assert [row[name] for name in ("#", "batch", "old object", "new object")] == ["1", "1", "Greek", "Danish"]
    assert [row["subject"], row["prompt"]] == [SCRIPT, f"{SCRIPT} speaks"]
    assert dict(zip(heading, second, strict=True))["new object"] == "a & b"
    run = find_run(home, "latest")
    records = [row for row in run.records().to_pylist() if row["phase"] == "after" and row["case_id"] == 0]
    values = {row["metric"]: row["value"] for row in records}
    assert row["ES"] == f"{100 * values['ES']:.0f}"
    assert row["holds"] == ("yes" if values["ES"] == 1 else "no")

    scores = {row[0]: row for row in found.tables["scores"]}
    assert scores["ES"][2] == f"{run.metrics['after/ES']:.1f}"
    assert scores["FreeEff"][6] == "efficacy: greedy answer starts with new object"
    assert [row[0] for row in found.tables["cost"][1:4]] == ["model", "tokens", "keys"]
    assert {row[1] for row in found.tables["cost"][1:-1]} == {"built"}
    settings = {row[0]: row[1:3] for row in found.tables["settings"]}
    assert settings["method.preservation_weight"] == ["1.0", "given"]
    assert settings["dataset.format"] == ["facts", "dataset=facts"]
    made = {row[0]: row for row in found.tables["lineage"]}
    assert [row[1] for row in found.tables["lineage"][1:]] == artifacts_of(run, home)
    tokenizer = made["tokens"][3].removeprefix("tokenizer ")
    sources = f"model {short(made['model'])}, tokenizer {tokenizer}, tokens {short(made['tokens'])}"
    assert made["keys"][3] == sources
    assert "C0 covers" in html

    again = tmp_path / "again.html"
    assert factsmith("report", "latest", again).code == 0
    assert again.read_text() == html
    assert factsmith("report", "latest", again).code == 0, "a report may be replaced"


def artifacts_of(run, home) -> list[str]:
    """The artifacts of a run's stages, in their order, as MLflow has them."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    stages = [one for one in client.search_runs(["1"]) if "stage" in one.data.tags]
    return [one.data.tags["artifact"] for one in sorted(stages, key=lambda one: one.info.start_time)]


def short(row: list[str]) -> str:
    """The digest of a stage's artifact, as others name it."""
    return row[1].partition("/")[2][:12]


@pytest.mark.parametrize(
    ("name", "said"), [("memit", "ends in .html"), ("mine.html", "exists already"), ("no/such.html", "not a writable")]
)
def test_a_file_that_is_no_place_for_a_report(refused, arguments, tmp_path, name, said):
    (tmp_path / "mine.html").write_text("<!DOCTYPE html>my own page")
    for command in ("run", "evaluate", "edit", "sweep"):
        assert said in " ".join(refused(command, *arguments(), "--report", tmp_path / name).split())
    assert (tmp_path / "mine.html").read_text() == "<!DOCTYPE html>my own page"


def test_sweeps_their_cells_and_precompute_have_reports(plain_flows, home, arguments):
    given = arguments("dataset.batches=1", "corpus.dynamic_multiplier=10,20")
    report = run_sweep(open_sweep(given))
    found = Text(find_run(home, report.mlflow_run_id).report)
    assert [row[1] for row in found.tables["runs"][1:]] == [cell.mlflow_run_id[:8] for cell in report.cells]
    assert "polyline" in [tag for tag, _ in found.tags], "scores by d_m are drawn"
    cell = Text(find_run(home, report.cells[0].mlflow_run_id).report)
    assert len([row for row in cell.tables["facts"] if len(row) > 2]) == 1 + 3
    prepared = Text(find_run(home, precompute(compose(arguments()), report=True).mlflow_run_id).report)
    assert [row[0] for row in prepared.tables["how-well-c0-is-known"][:3]] == ["layer", "0", "1"]
    assert "facts" not in prepared.tables


def batches_of(count: int) -> tuple[FactBatches, list[Answer]]:
    requests = [EditRequest(case, f"subject {case}", "{} is", f"object {case}") for case in range(count)]
    records = [Record(request, {}, place=request.case_id) for request in requests]
    answers = [
        Answer(case, f"subject {case} is", f"object {case}", "before", f"after {case}", holds=case % 10 > 0)
        for case in range(count)
    ]
    return FactBatches([records]), answers


def test_many_facts_are_cut_and_the_failures_are_kept(monkeypatch):
    batches, answers = batches_of(100)
    monkeypatch.setattr(facts_module, "_MOST_FACTS", 30)
    *texts, table = facts(batches, [], answers=answers).blocks
    places = [fact.place - 1 for fact in table.facts]
    assert places == sorted(places)
    assert {place for place in places if place % 10 == 0} == set(range(0, 100, 10))
    assert [place for place in places if place % 10] == [place for place in range(23) if place % 10]
    assert texts[1] == (
        "30 of 100 facts are shown: 10 of the 10 that do not hold, and the first 20 others. "
        "In MLflow, answers.json has all of them."
    )
    assert (table.facts[0].answer.after, table.facts[0].holds) == ("after 0", False)


def test_curves_say_when_a_model_collapsed():
    curves = {
        "sequence/S": {1: 90.0, 4: 80.0},
        "sequence/perplexity": {0: 2.0, 1: 3.0, 4: 25.0, 8: float("inf")},
        "change/relative/layer_3": {1: 0.1, 4: 0.2},
    }
    said, drawn = trajectory(curves, load_families(["counterfact"])).blocks
    assert "after 4 edits" in said
    scores, perplexity, change = drawn.charts
    assert [line.name for line in change.lines] == ["layer 3"]
    assert perplexity.limits == [20.0]
    assert [point for _, point in perplexity.named(perplexity.lines[0])] == [(0, 2.0), (1, 3.0), (4, 25.0)]
    html = render(Document("t", {}, [], [trajectory(curves, load_families(["counterfact"]))]))
    left, top = scores.at(1, 90.0)
    assert f"{left},{top} " in html


def test_what_is_not_in_the_store_any_more_has_no_sources(tmp_path):
    from factsmith.tasks.pipeline.workspace import StageReport

    _, table = lineage(Store(tmp_path), [StageReport("edit", "built", 1.0, "edit/0123")]).blocks
    assert table.rows == [["edit", "edit/0123", "–", "–"]]


def test_titles_are_anchors():
    assert document._slug("How well C0 is known") == "how-well-c0-is-known"
    assert re.fullmatch("[a-z-]+", document._slug("Cost"))


def test_what_a_metric_family_names_is_there():
    families = {family.name: family for family in load_families()}
    for family in families.values():
        assert set(family.efficacy) <= set(family.metrics), family.name
        if family.text is not None:
            assert family.schema.field(family.text).type == "string", family.name
    assert families["zsre"].text is None, "its rows hold the correct answers, which no model wrote"
