"""Stage ``edit``: the weight changes of every batch, as thin factors."""

from __future__ import annotations

from functools import cache

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_json, save_tensors
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.bench import Bench
from factsmith.tasks.contexts import Contexts
from factsmith.tasks.editing.edit import compute_edit
from factsmith.tasks.factor import Factors
from factsmith.tasks.model import ModelName
from factsmith.tasks.numerics.delta import LowRankDelta
from factsmith.tasks.numerics.solve import CollidingKeysError
from factsmith.tasks.progress import work
from factsmith.tasks.records.record import Record
from factsmith.tasks.stage import Outcome, stage
from factsmith.tasks.values import Values

__all__ = ["edit", "read_deltas"]

TENSORS = "factors.safetensors"
"""Holds ``layer.N.left`` (d_out, B) and ``layer.N.right`` (d_in, B), float64: Delta = left @ right.T."""


def read_deltas(artifact: Artifact) -> dict[int, LowRankDelta]:
    """The weight change of each edited layer."""
    tensors = load_tensors(artifact.path / TENSORS)
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    return {layer: LowRankDelta(tensors[f"layer.{layer}.left"], tensors[f"layer.{layer}.right"]) for layer in layers}


@stage("edit")
def edit(
    bench: Bench, model: ModelName, contexts: Contexts, values: Values, factors: Factors
) -> Outcome[list[Artifact]]:
    """Solve for each batch, always from the unedited weights.

    Raises:
        InputError: facts of a batch ask for different values at one key; names them.
    """
    method = bench.settings.method
    slacks = {len(batch): _slack(bench, len(batch)) for batch in bench.batches}
    edits: list[Artifact] = []
    series: dict[float, Series] = {}
    any_built = False
    operator = cache(factors.operator)
    with work("edit", sum(map(len, bench.batches))) as advance:
        for batch in bench.batches:
            slack = slacks[len(batch)]
            series[slack] = Series(
                "edit",
                1,
                {
                    "layers": bench.layers,
                    "slack": slack,
                    "spread": method.spread,
                    "clean_weight": method.clean_weight,
                    "read_keys": method.read_keys,
                    **model.parameters,
                },
                {
                    **model.inputs,
                    "contexts": contexts.digest,
                    "values": values.series.digest,
                    "factor": factors.series.digest,
                },
            )
            # The order of facts does not matter, so it is not part of the edit's name.
            ordered = sorted(batch, key=lambda record: digest_of(record.request.fact))
            recipe = series[slack].member(facts=[digest_of(record.request.fact) for record in ordered])

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
                    first, second = (requests[index] for index in error.pairs[0])
                    raise InputError(
                        f"Cases {first.case_id} and {second.case_id} cannot both be met exactly: their keys coincide.",
                        got=f"{first.prompt!r} and {second.prompt!r}",
                        remedy="drop one of them, or set method.slack above 0",
                    ) from None
                save_tensors(
                    draft.path / TENSORS,
                    {
                        f"layer.{layer}.{side}": getattr(delta, side)
                        for layer, delta in deltas.items()
                        for side in ("left", "right")
                    },
                )
                save_json(
                    draft.path / "requests.json",
                    [{"case_id": request.case_id, **request.fact} for request in requests],
                )
                draft.summary = {
                    "facts": len(requests),
                    "norm": {str(layer): delta.norm() for layer, delta in deltas.items()},
                }
                draft.made = bench.made

            artifact, built = bench.store.get_or_build(recipe, build)
            edits.append(artifact)
            any_built |= built
            advance(len(batch))
    address = edits[0].address if len(edits) == 1 else next(iter(series.values())).address
    return Outcome(edits, address, any_built, {"facts": sum(map(len, bench.batches)), "batches": len(edits)})


def _slack(bench: Bench, facts: int) -> float:
    method = bench.settings.method
    return method.slack_of_one if facts == 1 and method.slack_of_one is not None else method.slack
