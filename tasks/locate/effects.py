"""The table of indirect effects, and their average over facts by the role of the token."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.tasks.locate.runs import KINDS, Traced
from factsmith.tasks.locate.trace import Effects

__all__ = ["LAST_SUBJECT", "LAST_TOKEN", "ROLES", "SCHEMA", "SEVERED", "average", "probabilities", "role", "rows_of"]

SEVERED = "severed"
"""The kind of effects of hidden states without the MLPs above. They are measured only at the subject's last token."""

LAST_SUBJECT = "last subject token"
LAST_TOKEN = "last token"  # noqa: S105 - of a prompt
ROLES = (
    "first subject token",
    "middle subject tokens",
    LAST_SUBJECT,
    "first subsequent token",
    "further tokens",
    LAST_TOKEN,
)
"""The roles of a token in a prompt  [Meng et al. 2022a, figure 1e]."""

SCHEMA = pa.schema(
    [
        ("fact", pa.string()),
        ("kind", pa.string()),
        ("layer", pa.int32()),
        ("position", pa.int32()),
        ("role", pa.string()),
        ("clean", pa.float64()),
        ("corrupted", pa.float64()),
        ("effect", pa.float64()),
    ]
)
"""One row for each (fact, kind, layer, position), without the positions before the subject. ``clean`` and ``corrupted``
are P(object)."""


def role(position: int, fact: Traced) -> str:
    """The role of the token at ``position``, which is not before the subject.

    If several roles apply, the subject's last token has priority, then the prompt's last token.
    """
    if position == fact.last:
        return LAST_SUBJECT
    if position < fact.last:
        return ROLES[0] if position == fact.first else ROLES[1]
    if position == len(fact.tokens) - 1:
        return LAST_TOKEN
    return ROLES[3] if position == fact.last + 1 else ROLES[4]


def rows_of(name: str, fact: Traced, effects: Effects) -> list[dict[str, object]]:
    """Rows of ``SCHEMA`` for one fact, which is called ``name`` there."""
    found: list[tuple[str, int, int, float]] = [
        (kind, layer, fact.first + offset, effect)
        for kind in KINDS
        for layer, by_position in enumerate(effects.indirect[kind].tolist())
        for offset, effect in enumerate(by_position)
    ]
    found += [(SEVERED, layer, fact.last, effect) for layer, effect in enumerate(effects.severed.tolist())]
    return [
        {
            "fact": name,
            "kind": kind,
            "layer": layer,
            "position": position,
            "role": role(position, fact),
            "clean": effects.clean,
            "corrupted": effects.corrupted,
            "effect": effect,
        }
        for kind, layer, position, effect in found
    ]


def average(rows: pa.Table) -> dict[str, dict[str, list[float]]]:
    """The average indirect effect by kind and role, one number per layer. Roles that no prompt has are left out.

    The mean is taken over a fact's tokens with the role, then over facts  [Meng et al. 2022a, section 2.2].
    """
    within = _mean(rows, ["fact", "kind", "layer", "role"], "effect")
    over = _mean(within, ["kind", "layer", "role"], "effect_mean")
    found = {(row["kind"], row["role"], row["layer"]): row["effect_mean_mean"] for row in over.to_pylist()}
    layers = sorted({layer for _, _, layer in found})
    return {
        kind: {
            role: [found[kind, role, layer] for layer in layers] for role in ROLES if (kind, role, layers[0]) in found
        }
        for kind in (*KINDS, SEVERED)
    }


def probabilities(rows: pa.Table) -> tuple[float, float]:
    """The mean over facts of P(object), in the clean run and in the corrupted run."""
    clean, corrupted = (
        float(pc.mean(_mean(rows, ["fact"], name)[f"{name}_mean"]).as_py()) for name in ("clean", "corrupted")
    )
    return clean, corrupted


def _mean(rows: pa.Table, by: list[str], column: str) -> pa.Table:
    return rows.group_by(by, use_threads=False).aggregate([(column, "mean")])
