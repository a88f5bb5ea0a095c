"""The site builds without a warning, asks for nothing from other machines, and its notebook runs."""

from __future__ import annotations

import re
import shutil
from io import StringIO
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from factsmith.flows.configuration.keys import describe_settings
from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "how-to" / "notebook.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, as ``make docs`` builds it, of a copy of docs: the build writes pages into its source."""
    base = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", base / "docs", ignore=shutil.ignore_patterns("generated"))
    shutil.copy(ROOT / "CONTRIBUTING.md", base)
    warnings = StringIO()
    source, out = base / "docs", base / "out"
    with patch_docutils(source), docutils_namespace():
        made = Sphinx(
            source, source, out, base / "trees", "html", status=None, warning=warnings, warningiserror=True, verbosity=0
        )
        made.build()
    assert made.statuscode == 0, warnings.getvalue()
    return out


def test_every_setting_and_command_has_its_place(site: Path):
    settings = (site / "generated" / "settings.html").read_text()
    for name, _ in describe_settings():
        assert f">{name}<" in settings, name
    commands = (site / "generated" / "commands.html").read_text()
    for name in ("edit", "evaluate", "sweep", "store ls"):
        assert f"factsmith {name}" in commands


def test_no_page_asks_for_anything_elsewhere(site: Path):
    """Fonts, scripts, styles and images are files of the site. Links may lead elsewhere."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", style.read_text()), style


def test_the_notebook_runs_and_shows_what_it_prints():
    """What is stored in it is what it prints now."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    ran = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(ran, timeout=300, kernel_name="python3").execute()

    def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
        """What each cell prints, and its value. A kernel sends what is printed in one piece or in several."""
        found = []
        for cell in notebook.cells:
            if cell.cell_type == "code":
                shown = [one for one in cell.outputs if one.get("name") != "stderr"]
                printed = "".join(one["text"] for one in shown if one["output_type"] == "stream")
                values = [one["data"]["text/plain"] for one in shown if one["output_type"] != "stream"]
                found.append([printed, *values])
        return found

    assert outputs(ran) == outputs(stored)
    assert sum(any(of_one) for of_one in outputs(stored)) >= 6
