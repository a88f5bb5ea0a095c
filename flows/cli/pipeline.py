"""Commands that run the pipeline, or a part of it, or say what it would do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from factsmith.flows.cli.common import (
    AsJson,
    Words,
    check_runs,
    compose_words,
    preflight,
    show,
    show_report,
    start,
)
from factsmith.tasks.pipeline.paths import home

__all__ = ["edit", "evaluate", "plan", "precompute", "run"]


FactsAndWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FACTS] [WORDS]...", help="facts (.json, .jsonl, .csv), choices and settings"),
]


def run(words: Words = None, as_json: AsJson = False) -> None:
    """Precompute, edit and evaluate: the whole pipeline."""
    settings = compose_words(words)
    preflight(settings, dataset=True)
    from factsmith.flows.run import run as flow

    show_report(lambda: flow(settings), settings, as_json)


def precompute(
    words: Words = None,
    report: Annotated[
        bool, typer.Option("--report", help="measure each layer's covariance: held-out leverage, rank, spectrum")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Get a model ready: tokens, keys, covariance, factor."""
    settings = compose_words(words)
    bench = preflight(settings, dataset=False)
    if report:
        from factsmith.flows.reporting.conditioning import check_report

        check_report(bench)
    from factsmith.flows.precompute import precompute as flow

    show_report(lambda: flow(settings, report), settings, as_json)


def edit(
    words: FactsAndWords = None,
    out: Annotated[Path | None, typer.Option(help="folder to write the edited model to")] = None,
    as_json: AsJson = False,
) -> None:
    """Write facts into a model, all those of a facts file together.

    A fact is an object with subject, prompt and target_new:
    {"subject": "Ada Lovelace", "prompt": "{} was born in", "target_new": "London"}
    """
    settings = compose_words(_with_facts(words))
    preflight(settings, dataset=True, out=out)
    from factsmith.flows.edit import edit as flow

    show_report(lambda: flow(settings, out), settings, as_json, out)


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN | FACTS] [WORDS]...", help="an earlier run, or facts, choices and settings"),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="families of metrics to score on: counterfact,generation,...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model before and after its facts are written, running only what has not been scored yet.

    RUN is the id of an earlier run (`factsmith runs`) or `latest`: the edits it made are scored, and not made again.
    """
    words = list(words or [])
    if metrics is not None:
        words.append(f"dataset.metrics=[{metrics}]")
    run = words.pop(0) if words and _is_run(words[0]) else None
    past = None
    if run is None:
        settings = compose_words(_with_facts(words))
    else:
        start()
        check_runs()
        from factsmith.flows.configuration.composition import compose_again
        from factsmith.tasks.tracking.runs import find_run

        past = find_run(home(), run)
        settings = compose_again(past.content, words)
    preflight(settings, dataset=True, run=past)
    from factsmith.flows.evaluate import evaluate as flow

    show_report(lambda: flow(settings, past.id if past else None), settings, as_json)


def _is_run(word: str) -> bool:
    """Whether a word is meant for a run and not for a file of facts or a setting."""
    return "=" not in word and not Path(word).suffix and not Path(word).exists()


def plan(
    words: FactsAndWords = None,
    precompute: Annotated[bool, typer.Option("--precompute", help="only what does not depend on facts")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: what is cached, and what the rest would cost in FLOP, bytes and memory."""
    settings = compose_words(_with_facts(words))
    bench = preflight(settings, dataset=not precompute)
    from factsmith.flows.reporting.terminal import plan_table
    from factsmith.tasks.planning.plan import plan as plan_stages

    stages = plan_stages(bench, dataset=not precompute)
    if as_json:
        typer.echo(json.dumps({"stages": [asdict(stage) for stage in stages]}))
        return
    show(plan_table(stages, settings))


def _with_facts(words: list[str] | None) -> list[str]:
    """The words, a facts file that stands before them put into words too: all its facts are written together."""
    if not words or "=" in words[0]:
        return words or []
    given = ["dataset=facts", f"dataset.path={words[0]}"]
    if not any(word.startswith("method.batch_size=") for word in words):
        given.append("method.batch_size=all")
    return [*given, *words[1:]]
