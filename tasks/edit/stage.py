"""Stage ``edit``: the weight changes of every batch, as thin factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_json, save_tensors
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.edit.batch import compute_edit
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.solve import CollidingKeysError
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.factoring.factorisation import factorisation
from factsmith.tasks.preservation.stage import Factors
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.values.stage import Values

__all__ = [
    "colliding",
    "edit",
    "edit_recipe",
    "edit_series",
    "edit_slack",
    "fact_digests",
    "ordered_facts",
    "past_edits",
    "read_deltas",
    "save_deltas",
]

TENSORS = "factors.safetensors"
"""Holds ``layer.N.left`` (d_out, B) and ``layer.N.right`` (d_in, B), float64: Delta = left @ right.T."""


def read_deltas(artifact: Artifact) -> dict[int, LowRankDelta]:
    """The weight change of each edited layer."""
    tensors = load_tensors(artifact.path / TENSORS)
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    return {layer: LowRankDelta(tensors[f"layer.{layer}.left"], tensors[f"layer.{layer}.right"]) for layer in layers}


def edit_slack(bench: Bench, facts: int) -> float:
    """gamma of a batch of so many facts."""
    method = bench.settings.method
    return method.slack_of_one if facts == 1 and method.slack_of_one is not None else method.slack


def edit_series(bench: Bench, model: ModelName, contexts: str, values: str, factor: str, slack: float) -> Series:
    """Edits that differ in their facts alone; what they are made from is given by digests."""
    method = bench.settings.method
    parameters = {
        "layers": bench.layers,
        "slack": slack,
        "spread": method.spread,
        "clean_weight": method.clean_weight,
        "read_keys": method.read_keys,
        **factorisation(bench).scaling(bench),
        **model.parameters,
    }
    return Series("edit", 1, parameters, {**model.inputs, "contexts": contexts, "values": values, "factor": factor})


def ordered_facts(batch: Sequence[Record]) -> list[Record]:
    """The records of a batch in the order they are solved in, whatever order they came in."""
    return sorted(batch, key=lambda record: digest_of(record.request.fact))


def fact_digests(batch: Sequence[Record]) -> list[str]:
    """A batch's facts by their digests, the same whatever order they came in."""
    return sorted(digest_of(record.request.fact) for record in batch)


def edit_recipe(series: Series, batch: Sequence[Record]) -> Recipe:
    """The edit that writes a batch; the order of its facts does not matter."""
    return series.member(facts=fact_digests(batch))


def save_deltas(draft: Draft, deltas: Mapping[int, LowRankDelta], requests: Sequence[EditRequest]) -> None:
    """Write the weight changes that hold ``requests`` into ``draft``."""
    sides = ("left", "right")
    tensors = {f"layer.{layer}.{side}": getattr(delta, side) for layer, delta in deltas.items() for side in sides}
    save_tensors(draft.path / TENSORS, tensors)
    save_json(draft.path / "requests.json", [{"case_id": request.case_id, **request.fact} for request in requests])
    draft.summary = {"facts": len(requests), "norm": {str(layer): delta.norm() for layer, delta in deltas.items()}}


def colliding(requests: Sequence[EditRequest], error: CollidingKeysError) -> InputError:
    """Facts of a batch ask for different values at one key."""
    first, second = (requests[index] for index in error.pairs[0])
    return InputError(
        f"Cases {first.case_id} and {second.case_id} cannot both be met exactly: their keys coincide.",
        got=f"{first.prompt!r} and {second.prompt!r}",
        remedy="drop one of them, or set method.slack above 0",
    )


@stage("edit")
def edit(
    bench: Bench, model: ModelName, contexts: Contexts, values: Values, factors: Factors
) -> Outcome[list[Artifact]]:
    """Solve for each batch, always from the unedited weights.

    Raises:
        InputError: facts of a batch ask for different values at one key; names them.
    """
    method = bench.settings.method
    edits: list[Artifact] = []
    any_built = False
    operator = cache(factors.operator)
    with work("edit", sum(map(len, bench.batches))) as advance:
        for batch in bench.batches:
            slack = edit_slack(bench, len(batch))
            series = edit_series(bench, model, contexts.digest, values.series.digest, factors.series.digest, slack)
            ordered = ordered_facts(batch)
            recipe = edit_recipe(series, batch)

            def build(draft: Draft, ordered: list[Record] = ordered, slack: float = slack) -> None:
                requests = [record.request for record in ordered]
                vectors, sources = values.read(requests)
                draft.read_from(*sources, *factors.layers.values())
                try:
                    deltas = compute_edit(
                        bench.decoder,
                        requests,
                        vectors,
                        contexts.templates,
                        bench.layers,
                        operator,
                        slack=slack,
                        site=method.value.site,
                        spread=method.spread,
                        clean_weight=method.clean_weight,
                        read_keys=method.read_keys,
                        most_tokens=bench.settings.runtime.tokens_per_pass,
                    )
                except CollidingKeysError as error:
                    raise colliding(requests, error) from None
                save_deltas(draft, deltas, requests)
                draft.made = bench.made

            artifact, built = bench.store.get_or_build(recipe, build)
            edits.append(artifact)
            any_built |= built
            advance(len(batch))
    address = edits[0].address if len(edits) == 1 else f"edit/{edits[0].manifest.series}"
    return Outcome(edits, address, any_built, {"facts": sum(map(len, bench.batches)), "batches": len(edits)})


def past_edits(bench: Bench, run: PastRun) -> list[Artifact]:
    """The edits that ``run`` made: one a batch of ``bench``, or one for each time that a sequence was scored.

    Raises:
        InputError: one is not in the store any more, or the dataset has other facts than it had then.
    """
    edits = [bench.store.at(place) for place in run.edits]
    gone = [place for place, artifact in zip(run.edits, edits, strict=True) if artifact is None]
    if gone:
        raise InputError(
            f"{len(gone)} of {len(edits)} edits of run {run.id} are not in the store {bench.store.root}.",
            got=gone[0],
            remedy="make them again with the words of that run, as its page in MLflow shows them",
        )
    found = [artifact for artifact in edits if artifact is not None]
    written = [artifact.key["facts"] for artifact in found]
    batches = [fact_digests(batch) for batch in bench.batches]
    asked = [digest_of(batches[:number]) for number in bench.scored_batches] if bench.in_sequence else batches
    held = found[-1:] if bench.in_sequence else found
    if written != asked:
        raise InputError(
            f"dataset={bench.settings.dataset.name} does not have the facts that run {run.id} wrote.",
            got=f"{sum(map(len, batches))} facts in {len(batches)} batches",
            expected=f"the {sum(artifact.summary['facts'] for artifact in held)} facts of that run",
            remedy="give the file that was written then in dataset.path",
        )
    return found
