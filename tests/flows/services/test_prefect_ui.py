"""Prefect's UI in a browser: a schedule fires, and its run's page shows the scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import expect

from tests.browser import new_page
from tests.servers import clean_environment, free_ports, started, until

GIVEN = ["corpus.dynamic_multiplier=2", "method.batch_size=4", "dataset.batches=1", "method.value.steps=4"]
TITLE = "evaluate · memit · embedded · 4 facts · d_m=2 · value.steps=4"


def test_a_schedule_fires_and_its_page_shows_the_scores(chromium: str, tmp_path: Path):
    prefect, mlflow = free_ports(2)
    api = f"http://127.0.0.1:{prefect}/api"
    environment = clean_environment(
        FACTSMITH_HOME=str(tmp_path / "home"), PREFECT_RUNNER_POLL_FREQUENCY="1", OMP_NUM_THREADS="1"
    )
    ports = ["--port", str(prefect), "--mlflow-port", str(mlflow)]
    when = ["--only", "evaluate", "--interval", "5", "--name", "tiny"]

    def asked(what: str, **content: Any) -> Any:
        answer = httpx.post(f"{api}/{what}/filter", json=content, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def finished() -> Any:
        ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
        return asked("flow_runs", flow_runs=ended, sort="START_TIME_ASC")

    arguments = ["factsmith.flows.cli", "serve", *when, *ports, *GIVEN]
    with started(arguments, tmp_path / "log", env=environment) as serving, new_page(chromium) as page:
        run = until(finished, serving)[0]
        (table,) = asked(
            "artifacts",
            artifacts={"flow_run_id": {"any_": [run["id"]]}, "type": {"any_": ["table"]}},
        )

        page.goto(f"http://127.0.0.1:{prefect}/runs/flow-run/{run['id']}")
        expect(page.get_by_text(TITLE, exact=True).first).to_be_visible()
        for word in ("Completed", "auto-scheduled", "9 Task runs"):
            expect(page.get_by_text(word, exact=True).first).to_be_visible()
        expect(page.get_by_text(re.compile("^model: built in")).first).to_be_visible()
        page.locator("#artifacts").click()
        expect(page.get_by_text("mlflow-run", exact=True).first).to_be_visible()
        page.get_by_text("scores-memit-embedded", exact=True).first.click()

        page.goto(f"http://127.0.0.1:{prefect}/artifacts/artifact/{table['id']}")
        for column in ("metric", "before", "after", "meaning"):
            expect(page.get_by_role("columnheader", name=column, exact=True)).to_be_visible()
        meaning = page.get_by_role("row").filter(has_text="efficacy: new object likelier than true object")
        before, after = map(float, re.findall(r"\d+\.\d", meaning.inner_text()))
        assert before < after
