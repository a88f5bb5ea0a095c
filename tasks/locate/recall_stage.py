"""Stage ``known``: which facts a model knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.rows import RowSeries, holders
from factsmith.tasks.decoder.likelihood import Likelihood, continuation_likelihoods
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Known", "columns", "digest", "encoded", "known", "recall", "with_true_object"]

_RECALL = "recall.parquet"
_FACTS_AT_ONCE = 256


@dataclass(frozen=True)
class Known:
    """The facts that a model knows.

    Attributes:
        recalled: case ids of facts whose true object is the model's first choice at every token.
        preferred: case ids of facts whose true object has a lower mean NLL per token than the new object.
        facts: number of facts with a true object.
    """

    recalled: list[int]
    preferred: list[int]
    facts: int


@stage("known")
def known(workspace: Workspace, model: Model, records: Sequence[Record]) -> Outcome[Known]:
    """Find the facts that the model knows, in the order of ``records``.

    Args:
        workspace: the run's workspace.
        model: the model.
        records: records with a true object.
    """
    asked = {digest(one): one for record in records for one in (with_true_object(record.request), record.request)}
    found: dict[str, Likelihood] = {}
    built = 0
    with progress("known", len(asked)) as advance:
        for part, run in recall(workspace, model, asked):
            found |= part
            built += run
            advance(len(part))
    pairs = [
        (record.request.case_id, found[digest(with_true_object(record.request))], found[digest(record.request)])
        for record in records
    ]
    outcome = Known(
        recalled=[case for case, true, _ in pairs if true.exact],
        preferred=[case for case, true, new in pairs if true.nll < new.nll],
        facts=len(pairs),
    )
    metrics = {"facts": outcome.facts, "recalled": len(outcome.recalled), "preferred": len(outcome.preferred)}
    return Outcome(outcome, _rows(workspace, model).series.address, built > 0, metrics)


def recall(
    workspace: Workspace, model: Model, facts: dict[str, EditRequest]
) -> Iterator[tuple[dict[str, Likelihood], int]]:
    """The likelihood of the object of each of ``facts``, in groups, and how many of a group had to be run.

    Args:
        workspace: the run's workspace.
        model: the model.
        facts: facts by their digest. Their new objects are asked for.
    """
    series = _rows(workspace, model)
    digests = list(facts)

    def build(draft: Draft, wanted: list[str]) -> None:
        prompts = [encoded(model, facts[one]) for one in wanted]
        found = continuation_likelihoods(model.decoder, prompts, most_tokens=model.limits.most_tokens)
        rows = [
            {**columns(facts[one]), "fact": one, **likelihood.columns}
            for one, likelihood in zip(wanted, found, strict=True)
        ]
        save_table(draft.path / _RECALL, pa.Table.from_pylist(rows))
        draft.summary = {"facts": len(wanted), "known": sum(one.exact for one in found)}
        draft.made = {**workspace.made, **model.made}

    for first in range(0, len(digests), _FACTS_AT_ONCE):
        group = digests[first : first + _FACTS_AT_ONCE]
        rows, built = series.get_or_build(group, build, at_once=_FACTS_AT_ONCE)
        tables = [load_table(artifact.path / _RECALL) for artifact in holders(rows[one] for one in group)]
        found = {
            row["fact"]: Likelihood(row["nll"], row["tokens"], row["correct"])
            for table in tables
            for row in table.to_pylist()
        }
        yield {one: found[one] for one in group}, built


def _rows(workspace: Workspace, model: Model) -> RowSeries:
    fingerprint = model.fingerprint
    return RowSeries(workspace.store, Series("recall", 1, fingerprint.parameters, fingerprint.inputs))


def with_true_object(request: EditRequest) -> EditRequest:
    """The fact as the model may know it: with the true object in place of the new one."""
    assert request.target_true is not None
    return replace(request, target_new=request.target_true)


def columns(fact: EditRequest) -> dict[str, str]:
    """The columns of a fact in tables."""
    return {"subject": fact.subject, "template": fact.template, "object": fact.target_new}


def digest(fact: EditRequest) -> str:
    """Digest of a fact and its object."""
    # With the usual blank, artifacts keep the names of earlier versions.
    return digest_of(columns(fact) if fact.joined == " " else {**columns(fact), "separator": fact.joined})


def encoded(model: Model, fact: EditRequest) -> EncodedPrompt:
    """The prompt of a fact, continued with its object."""
    return encode_prompt(model.tokenizer, fact.template, fact.subject, fact.target_new, fact.separator)
