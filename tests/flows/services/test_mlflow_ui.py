"""MLflow's UI in a browser, at the address that ``factsmith ui`` prints."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Locator, Page, expect

from factsmith.flows.configuration.composition import compose
from factsmith.flows.reporting.reports import Report
from factsmith.flows.run import run
from factsmith.flows.services.mlflow_ui import score_pages
from tests.browser import PATIENCE, new_page
from tests.servers import free_ports

SMALL = [
    "corpus.dynamic_multiplier=2", "method.batch_size=4", "dataset.batches=1", "runtime.threads=1",
]  # fmt: skip
RUNS = {"memit": ["method.value.steps=4"], "emmet": ["method.value.steps=12"]}
STAGES = ("model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "evaluation", "drift")
SUMMARY = ("ES", "PS", "NS", "S")


@pytest.fixture
def reports(chromium: str, home: Path, _mlflow_tables: None) -> dict[str, Report]:
    """Two runs without Prefect, by method."""
    return {method: run.fn(compose([f"method={method}", *SMALL, *more])) for method, more in RUNS.items()}


@pytest.fixture
def address(reports: dict[str, Report]) -> Iterator[str]:
    """What ``factsmith ui`` prints for the experiment; its server answers."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "factsmith.flows.cli", "ui", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        experiment, _, printed = process.stdout.readline().strip().partition(": ")
        assert experiment == "factsmith"
        assert printed.startswith(f"http://127.0.0.1:{port}/")
        deadline = time.monotonic() + PATIENCE
        while not answers(port):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)
        yield printed
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def page(chromium: str, address: str) -> Iterator[Page]:
    with new_page(chromium) as page:
        yield page


def title(method: str) -> str:
    """The name of a run: what it did, and the settings by which it differs from the choices."""
    steps = RUNS[method][0].removeprefix("method.")
    return f"{method} · embedded · 4 facts · d_m=2 · {steps}"


def row_of(page: Page, method: str) -> Locator:
    """The line of a run in the list."""
    link = page.get_by_role("link", name=title(method), exact=True)
    return page.get_by_role("row").filter(has=link)


def numbers_beside(table: Locator, name: str) -> list[float]:
    """What stands at the height of the link ``name``, from left to right: the page has no rows there to ask for."""
    box = table.get_by_role("link", name=name, exact=True).bounding_box()
    texts = table.locator("*:not(:has(*))").evaluate_all(
        "(leaves, middle) => leaves.map(leaf => [leaf.getBoundingClientRect(), leaf.innerText])"
        ".filter(([box, text]) => text && box.top < middle && middle < box.bottom)"
        ".sort(([one], [other]) => one.left - other.left).map(([box, text]) => text)",
        box["y"] + box["height"] / 2,
    )
    return [float(text) for text in texts]


def see_image(images: Locator, count: int) -> None:
    """So many images have arrived and can be drawn."""
    expect(images).to_have_count(count)
    for image in images.all():
        expect(image).to_be_visible()
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 300


def test_two_runs_are_compared(page, address, reports):
    # The list: a line a run with its scores, its stages folded away below it.
    page.goto(address)
    for name in SUMMARY:
        expect(page.get_by_role("columnheader", name=f"after/{name}", exact=True).first).to_be_visible()
    for method, report in reports.items():
        expect(row_of(page, method)).to_be_visible()
        for name in SUMMARY:
            cell = page.locator(f"[row-id='{report.mlflow_run_id}'] [col-id='metrics.`after/{name}`']")
            assert float(cell.inner_text()) == round(report.metrics["after"][name], 2)
        for column, text in (
            ("params.`method.name`", method),
            ("tags.`d_m`", "2"),
            ("params.`method.batch_size`", "4"),
        ):
            cell = page.locator(f"[row-id='{report.mlflow_run_id}'] [col-id='{column}']")
            expect(cell).to_have_text(text)
    expect(page.get_by_role("link", name="evaluation", exact=True)).to_have_count(0)
    fold = row_of(page, "memit").get_by_role("button")
    fold.click()
    for stage in STAGES:
        expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible()
    fold.click()
    expect(page.get_by_role("link", name="evaluation", exact=True)).to_have_count(0)

    # Two are picked and compared.
    for method in reports:
        row_of(page, method).get_by_role("checkbox", name="toggle row selection").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="Comparing 2 Runs")).to_be_visible()
    order = re.findall("(memit|emmet) · embedded", page.inner_text("body"))
    assert sorted(order) == ["emmet", "memit"]

    # Parameters: all of them, then only those that differ.
    def parameter(name: str) -> Locator:
        return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))

    expect(parameter("method.name").get_by_role("cell")).to_have_text(order)
    expect(parameter("method.batch_size").get_by_role("cell")).to_have_text(["4", "4"])
    page.get_by_role("switch", name="Parameters - Show diff only").click()
    expect(parameter("method.batch_size")).to_have_count(0)
    expect(parameter("method.name").get_by_role("cell")).to_have_text(order)
    steps = [RUNS[method][0].partition("=")[2] for method in order]
    expect(parameter("method.value.steps").get_by_role("cell")).to_have_text(steps)

    # Metrics: what the runs reported, run by run.
    for name in SUMMARY:
        expected = [reports[method].metrics["after"][name] for method in order]
        assert numbers_beside(page.get_by_role("grid"), f"after/{name}") == pytest.approx(expected, abs=0.01)

    # The figures, side by side.
    page.get_by_text("before_after.png", exact=True).click()
    see_image(page.get_by_role("img", name="before_after.png"), 2)

    # One of them: its stages, its figure, its configuration.
    page.get_by_role("link", name=reports["emmet"].mlflow_run_id, exact=True).click()
    expect(page.get_by_role("heading", name=title("emmet"))).to_be_visible()
    for stage in STAGES:
        expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("before_after.png", exact=True).click()
    see_image(page.get_by_role("img", name="before_after.png"), 1)
    page.get_by_text("config.json", exact=True).click()
    expect(page.get_by_text('"emmet"')).to_be_visible()

    # Its report, whose script runs in MLflow's frame too.
    page.get_by_text("report.html", exact=True).click()
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="4 facts written into embedded by emmet")).to_be_visible()
    expect(report.get_by_role("status")).to_have_text("4 of 4 facts")
    report.get_by_role("link", name="Environment").click()
    expect(report.get_by_role("heading", name="Environment")).to_be_in_viewport()


def test_a_database_that_cannot_be_read(refused, tmp_path, monkeypatch):
    (tmp_path / "notes.db").write_text("nothing that SQLite knows" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'notes.db'}")
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("the server was started"))
    assert "MLflow cannot read sqlite" in refused("ui", "--port", "59172")


def test_only_experiments_that_hold_runs_are_shown(tmp_path):
    """The one used last comes first, and a view is kept with each."""
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = {name: client.create_experiment(name) for name in ("old", "empty", "new")}
    for moment, name in enumerate(("new", "old", "new"), start=1):
        client.create_run(ids[name], start_time=moment)
    pages = score_pages(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(pages) == ["new", "old"]
    for name, page in pages.items():
        assert page.startswith(f"/#/experiments/{ids[name]}/runs?")
        (view,) = client.get_experiment(ids[name]).tags.values()
        assert "after/S`" in json.loads(view)["state"]
    assert client.get_experiment(ids["empty"]).tags == {}
