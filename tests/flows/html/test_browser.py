"""The report of a run in a browser, from the disk, without a network."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from factsmith.flows.html.blocks import Fact, FactTable, Section
from factsmith.flows.html.document import Document, render
from factsmith.tasks.tracking.runs import find_run
from tests.browser import new_page

SCRIPT = "<script>document.title = 'hacked'; alert(1)</script><img src=x onerror=alert(2)>"
FACTS = [
    {"subject": subject, "prompt": "{} speaks", "target_new": new, "target_true": "Greek"}
    for subject, new in ((SCRIPT, "Danish"), ("Mara", "Turkish"), ("Ilo", "Arabic"))
]


def test_a_report_is_read_filtered_and_sorted(chromium, factsmith, plain_flows, arguments, home, tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    given = [word for word in arguments("method.batch_size=all") if not word.startswith("dataset")]
    words = ["dataset=facts", f"dataset.path={tmp_path / 'facts.json'}", "dataset.metrics=[counterfact,greedy]"]
    file = tmp_path / "run.html"
    assert factsmith("run", *given, *words, "--report", file).code == 0
    after = find_run(home, "latest").metrics

    told: list[str] = []
    with new_page(chromium) as page:
        page.context.route("**/*", lambda route: route.continue_() if is_report(route.request) else route.abort())
        page.on("request", lambda request: None if is_report(request) else told.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))

        def is_report(request) -> bool:
            return request.url == file.as_uri()

        page.goto(file.as_uri())
        expect(page.get_by_role("heading", name="3 facts written into local by memit")).to_be_visible()
        score = page.get_by_role("row").filter(has=page.get_by_role("cell", name="Eff*", exact=True))
        expect(score.get_by_role("cell").nth(2)).to_have_text(f"{after['after/Eff_star']:.1f}")

        subjects = page.locator(".facts .subject:visible")
        expect(subjects).to_have_text([SCRIPT, "Mara", "Ilo"])
        page.get_by_role("button", name="subject").click()
        expect(subjects).to_have_text([SCRIPT, "Ilo", "Mara"])
        page.get_by_role("button", name="subject").click()
        expect(subjects).to_have_text(["Mara", "Ilo", SCRIPT])
        page.get_by_label("Filter").fill("ARABIC ilo")
        expect(subjects).to_have_text(["Ilo"])
        expect(page.get_by_role("status")).to_have_text("1 of 3 facts")
        page.get_by_label("Filter").fill("")
        page.get_by_label("only failures").check()
        failed = round(3 - 3 * after["after/ES"] / 100)
        expect(page.get_by_role("status")).to_have_text(f"{failed} of 3 facts")
        assert page.title() == "3 facts written into local by memit"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert told == []


def test_many_facts_are_shown_in_parts(chromium, tmp_path):
    file = tmp_path / "many.html"
    many = [
        Fact(place, 1, f"s{place}", f"s{place} is", "", "new", place % 3 > 0, None, [], []) for place in range(1, 301)
    ]
    table = FactTable(many, [], batches=1, answers=False, judged=True)
    file.write_text(render(Document("many", {}, [], [Section("Facts", [table])])))
    with new_page(chromium) as page:
        page.goto(file.as_uri())
        shown = page.locator(".facts .subject:visible")
        expect(shown).to_have_count(200)
        page.get_by_label("only failures").check()
        expect(shown).to_have_count(100)
        page.get_by_label("only failures").uncheck()
        page.get_by_role("button", name="#").click()
        page.get_by_role("button", name="#").click()
        expect(shown.first).to_have_text("s300")
        expect(shown).to_have_count(200)
        page.get_by_role("button", name="Show all 300").click()
        expect(shown).to_have_count(300)
