"""Stage ``edit``: the weight changes of every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_json, save_tensors
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.artifacts.store import Store
from factsmith.tasks.edit.batch import batch_edit
from factsmith.tasks.edit.delta import Delta
from factsmith.tasks.edit.edit import OTHER_EDIT, OTHER_TENSORS, Edit, WeightEdit
from factsmith.tasks.edit.refiners import load_refiner
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.edit.solve import colliding
from factsmith.tasks.edit.wrappers import load_wrapper
from factsmith.tasks.facts.batches import FactBatches, fact_digests, ordered_facts
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import SECONDS_AN_EDIT, Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.preservation.kind import PreservationKind
from factsmith.tasks.preservation.stage import Factors
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.values.stage import Values

__all__ = [
    "REQUESTS",
    "SECONDS_WRITTEN",
    "base_inputs",
    "colliding",
    "edit",
    "edit_recipe",
    "edit_series",
    "part_recipes",
    "past_edits",
    "read_deltas",
    "save_edit",
    "seconds_written",
    "stored_edits",
]

_TENSORS = "factors.safetensors"
"""The tensors of a ``WeightEdit``."""

REQUESTS = "requests.json"
"""The file with the facts that an edit writes."""


SECONDS_WRITTEN = "seconds_written"
"""How long facts took to write, if that is not how long their artifact took to build. It is in the manifest, among the
values that are not part of the recipe."""


def seconds_written(artifact: Artifact) -> float | None:
    """How long the facts in an artifact took to write; ``None`` if an earlier version made it."""
    return artifact.manifest.made.get(SECONDS_WRITTEN)


def read_deltas(artifact: Artifact) -> dict[int, Delta]:
    """The weight change of each edited layer of a ``WeightEdit``."""
    return dict(WeightEdit.read(load_tensors(artifact.path / _TENSORS), {}).deltas)


def save_edit(draft: Draft, edit: Edit, requests: Sequence[EditRequest]) -> None:
    """Write ``edit``, which writes ``requests``, into ``draft``."""
    if isinstance(edit, WeightEdit):
        save_tensors(draft.path / _TENSORS, edit.tensors())
    else:
        save_tensors(draft.path / OTHER_TENSORS, edit.tensors())
        save_json(draft.path / OTHER_EDIT, {"kind": edit.kind, "values": edit.values()})
    save_json(draft.path / REQUESTS, [{"case_id": request.case_id, **request.fact} for request in requests])
    draft.summary = {"facts": len(requests), **edit.summary()}


def edit_series(
    model: Fingerprint,
    layers: Sequence[int],
    method: MethodSettings,
    kind: PreservationKind,
    *,
    facts: int,
    contexts: str,
    values: str,
    factor: str,
) -> Series:
    """The series of the edits of batches of ``facts`` facts. The inputs are given by their digests."""
    parameters = {
        "layers": list(layers),
        "slack": method.slack_for(facts),
        "spread": method.spread,
        "clean_weight": method.clean_weight,
        "read_keys": method.read_keys,
        **kind.scaling,
        **part_recipes(method),
        **model.parameters,
    }
    return Series("edit", 1, parameters, {**model.inputs, "contexts": contexts, "values": values, "factor": factor})


def part_recipes(method: MethodSettings) -> dict[str, Any]:
    """The recipes of the method's refiner and wrapper. Methods without them keep the addresses of earlier versions."""
    parts = {"refiner": load_refiner(method), "wrapper": load_wrapper(method)}
    return {role: part.recipe for role, part in parts.items() if part is not None}


def edit_recipe(series: Series, batch: Sequence[Record]) -> Recipe:
    """The recipe of the edit that writes a batch. The order of its facts does not matter."""
    return series.member(facts=fact_digests(batch))


@stage("edit")
def edit(
    workspace: Workspace,
    model: Model,
    layers: list[int],
    method: MethodSettings,
    batches: Sequence[Sequence[Record]],
    contexts: Contexts,
    values: Values,
    factors: Factors,
) -> Outcome[list[Artifact]]:
    """Compute the edit of each batch, always from the unedited weights.

    Args:
        workspace: the run's workspace.
        model: the unedited model.
        layers: the edited layers, ascending.
        method: how facts are written.
        batches: the records of each batch.
        contexts: the contexts.
        values: the value vectors of all facts.
        factors: the factors of the preservation operators.

    Raises:
        InputError: facts of a batch ask for different values at the same key; names them.
    """
    edits: list[Artifact] = []
    any_built = False
    operator = cache(factors.operator)
    total = sum(map(len, batches))
    with progress("edit", total) as advance:
        for batch in batches:
            series = edit_series(
                model.fingerprint,
                layers,
                method,
                factors.kind,
                facts=len(fact_digests(batch)),
                contexts=contexts.digest,
                values=values.series.digest,
                factor=factors.series.digest,
            )

            def build(draft: Draft, ordered: Sequence[Record] = ordered_facts(batch)) -> None:
                requests = [record.request for record in ordered]
                vectors, sources = values.read(requests)
                draft.read_from(*sources, *factors.layers.values())
                deltas = batch_edit(
                    model.decoder,
                    requests,
                    vectors,
                    contexts.templates,
                    layers,
                    operator,
                    method,
                    most_tokens=model.limits.most_tokens,
                )
                save_edit(draft, WeightEdit(deltas), requests)
                draft.made = {**workspace.made, **model.made}

            artifact, built = workspace.store.get_or_build(edit_recipe(series, batch), build)
            edits.append(artifact)
            any_built |= built
            advance(len(batch))
    address = edits[0].address if len(edits) == 1 else f"edit/{edits[0].manifest.series}"
    seconds = sum(one.manifest.seconds for one in edits)
    return Outcome(edits, address, any_built, {"facts": total, "batches": len(edits), SECONDS_AN_EDIT: seconds / total})


def stored_edits(store: Store, run: PastRun, model: Model) -> list[Artifact]:
    """The edits that an earlier run made: one for each batch, or one for each time that a sequence was scored.

    Args:
        store: the artifact store.
        run: the earlier run.
        model: the model that the edits are for.

    Raises:
        InputError: an edit is not in the store any more, or was made for another model.
    """
    edits = [store.at(place) for place in run.edits]
    gone = [place for place, artifact in zip(run.edits, edits, strict=True) if artifact is None]
    if gone:
        raise InputError(
            f"{len(gone)} of {len(edits)} edits of run {run.id} are not in the store {store.where}.",
            got=gone[0],
            remedy="make them again with the settings of that run, as its page in MLflow shows them",
        )
    found = [artifact for artifact in edits if artifact is not None]
    for role, digest in model.fingerprint.inputs.items():
        if (edited := base_inputs(store, found[0]).get(role)) != digest:
            raise InputError(
                f"Run {run.id} edited a model with {'other weights' if role == 'model' else 'another tokenizer'} than "
                f"{model.name} has now.",
                got=f"{model.checkpoint.path}, {role} {digest[:12]}",
                expected=f"{role} {edited[:12]}" if edited else "a run whose edits name their model",
                remedy="set model.path to the model that was edited, or edit this one: give its settings without a run",
            )
    return found


def past_edits(store: Store, run: PastRun, model: Model, dataset: str, batches: FactBatches) -> list[Artifact]:
    """The edits that an earlier run made, whose facts are those of ``batches``.

    Args:
        store: the artifact store.
        run: the earlier run.
        model: the model that is scored.
        dataset: name of the dataset.
        batches: the records of that run, as the dataset has them now.

    Raises:
        InputError: as ``stored_edits``, or the dataset does not have the same facts as then.
    """
    found = stored_edits(store, run, model)
    written = [artifact.key["facts"] for artifact in found]
    digests = [fact_digests(batch) for batch in batches.batches]
    asked = digests if batches.scored is None else [digest_of(digests[:number]) for number in batches.scored]
    final = found if batches.scored is None else found[-1:]
    if written != asked:
        raise InputError(
            f"dataset={dataset} does not have the facts that run {run.id} wrote.",
            got=f"{len(batches.records)} facts in {len(digests)} batches",
            expected=f"the {sum(artifact.summary['facts'] for artifact in final)} facts of that run",
            remedy="set dataset.path to the file that was used then",
        )
    return found


def base_inputs(store: Store, edit: Artifact) -> Mapping[str, str]:
    """The digests of what an edit was made from, by role. An edit in a sequence names the sequence, whose parts do."""
    inputs: Mapping[str, str] = edit.manifest.recipe["series"]["inputs"]
    if "sequence" not in inputs:
        return inputs
    parts = (store.at(f"sequence/{inputs['sequence']}/{one.rpartition('/')[2]}") for one in edit.manifest.lineage)
    return next((part.manifest.recipe["series"]["inputs"] for part in parts if part), {})
