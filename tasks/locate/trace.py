"""Causal tracing: which states of a model carry a fact that it knows  [Meng et al. 2022a, section 2, appendix B.1].

Noise is added to the subject's embeddings, and the object's probability falls. Then one state of the clean run is
restored, at one token and one layer. The probability that this brings back is the state's *indirect effect*:
P(object | noise, state restored) - P(object | noise), averaged over draws of the noise.

A state is the output of a block, or the outputs of the MLPs or attentions of a window of layers. Noise does not affect
the positions before the subject, so they are not traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.locate.restoration import Restorations, RestoredRuns
from factsmith.tasks.locate.runs import KINDS, Kind, Runs, Traced
from factsmith.tasks.locate.settings import TraceSettings

__all__ = ["Effects", "embedding_deviation", "trace"]

_CPU_POSITIONS = 512
"""Most positions in a pass on a CPU. Products of larger matrices are no faster, and the activations leave its cache."""

_RUNS_SHARE = 8
"""The corrupted runs of the facts that are traced together have at most 1/8 of the positions of a pass, because what
they compute is kept for every layer."""

_PASSES_HELD = 16
"""The runs with a restoration whose states are in memory at the same time have at most 16 times the positions of a
pass."""

_PADDING = 0.25
"""Most of the tokens of the facts that are traced together that may be padding."""


@dataclass(frozen=True)
class Effects:
    """The effects that tracing finds for one fact.

    Attributes:
        clean: P(object) of the clean run.
        corrupted: P(object) with noise, mean over draws.
        indirect: for each kind, (layers, positions) float64 on the CPU: the mean over draws of what the restoration
            adds to ``corrupted``. Positions count from the subject's first token. A row of ``mlp`` or ``attention``
            is for the window around that layer.
        severed: (layers,) effect of restoring a block's output at the subject's last token while the MLPs above keep
            their outputs of the corrupted run at that token. This is the part of the effect that does not need these
            MLPs  [Meng et al. 2022b, section 4.1 and figure 3].
    """

    clean: float
    corrupted: float
    indirect: dict[Kind, Tensor]
    severed: Tensor


@torch.inference_mode()
def embedding_deviation(decoder: Decoder, *, most_tokens: int) -> float:
    """Standard deviation over the vocabulary of the token embeddings that enter block 0.

    It is the root mean square over dimensions of the standard deviation in each dimension. A position embedding adds
    the same to every token, so it does not count.
    """
    total = torch.zeros(decoder.width, dtype=torch.float64, device=decoder.device)
    squares = torch.zeros_like(total)
    position = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
    for chunk in torch.arange(decoder.vocabulary_size, device=decoder.device).split(most_tokens):
        rows = decoder.embed(chunk[:, None], position)[:, 0].double()
        total += rows.sum(0)
        squares += rows.square().sum(0)
    count = decoder.vocabulary_size
    return float((squares / count - (total / count).square()).clamp_min(0).mean().sqrt())


@torch.inference_mode()
def trace(
    decoder: Decoder,
    facts: Sequence[Traced],
    settings: TraceSettings,
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda layers: None,
) -> list[Effects]:
    """The effects of every restoration for each of ``facts``, in their order.

    A fact's noise is seeded by ``settings.seed`` and the fact's own tokens. Its effects therefore do not depend on the
    facts or the passes that it is traced with.

    Args:
        decoder: the model.
        facts: facts that the model knows.
        settings: settings of the trace.
        most_tokens: most positions in one forward pass, unless one prompt or the draws of one fact have more.
        advance: called with the work that has just been done. A fact is as much work as the model has layers.
    """
    deviation = settings.noise * embedding_deviation(decoder, most_tokens=most_tokens)
    found: dict[int, Effects] = {}
    lengths = [len(fact.tokens) for fact in facts]
    for places in length_batches(lengths, max(1, most_tokens // (_RUNS_SHARE * settings.samples)), waste=_PADDING):
        runs = Runs(decoder, [facts[place] for place in places], settings, deviation)
        found |= zip(places, _effects(runs, settings, most_tokens, advance), strict=True)
    return [found[place] for place in range(len(facts))]


def _steps(
    runs: Runs, whole: Restorations, severed: Restorations, positions: int
) -> Iterator[tuple[Restorations, list[int], int]]:
    """What is restored together, in at most ``positions`` positions unless the restorations of one row have more.

    Yields:
        The restorations, their rows and their place.
    """
    for place in range(runs.length):
        traced = [row for row, first in enumerate(runs.firsts) if first <= place]
        ending = [row for row, last in enumerate(runs.lasts) if last == place]
        for restored, rows in (whole, traced), (severed, ending):
            size = max(1, positions // (len(restored.each) * (runs.length - place)))
            for start in range(0, len(rows), size):
                yield restored, rows[start : start + size], place


def _effects(runs: Runs, settings: TraceSettings, most_tokens: int, advance: Callable[[int], None]) -> list[Effects]:
    """The effects of the facts of ``runs``."""
    layers, facts, device = runs.decoder.block_count, len(runs.padding), runs.decoder.device
    at_once = min(most_tokens, _CPU_POSITIONS) if device.type == "cpu" else most_tokens
    size = settings.window_of(layers)
    whole = Restorations(KINDS, layers, size, device)
    severed = Restorations(["hidden"], layers, size, device, severed=True)
    steps = list(_steps(runs, whole, severed, _PASSES_HELD * most_tokens))
    work = sum(restored.blocks * len(rows) * (runs.length - place) for restored, rows, place in steps)
    counted = _in_parts(work, layers * facts, advance)
    # Rows go to the device, and results come from it, in one piece. Each copy would wait for all that is computed.
    pieces = torch.tensor([row for _, rows, _ in steps for row in rows], device=device).split(
        [len(rows) for _, rows, _ in steps]
    )
    tables = {
        restored: torch.zeros(len(restored.each), len(runs.facts), runs.length, dtype=torch.float64, device=device)
        for restored in (whole, severed)
    }
    for (restored, _, place), rows in zip(steps, pieces, strict=True):
        tables[restored][:, rows, place] = RestoredRuns(runs, restored, rows, place, at_once).probabilities(counted)
    clean = runs.probability(runs.clean["hidden"][-1][:, -1], torch.arange(facts, device=device)).tolist()
    corrupted = runs.probability(runs.corrupted[-1][:, -1], runs.facts).view(facts, -1).mean(1)
    indirect, without = (
        (table.view(len(table), facts, settings.samples, -1).mean(2) - corrupted[:, None]).cpu()
        for table in (tables[whole], tables[severed])
    )
    return [
        Effects(
            clean[fact],
            base,
            {kind: indirect[whole.of(kind), fact, runs.firsts[fact * settings.samples] :] for kind in KINDS},
            without[:, fact, runs.lasts[fact * settings.samples]],
        )
        for fact, base in enumerate(corrupted.tolist())
    ]


def _in_parts(work: int, parts: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """A function to call with the work that has just been done, which calls ``advance`` with finished parts of it."""
    done = finished = 0

    def count(more: int) -> None:
        nonlocal done, finished
        done += more
        now = done * parts // max(1, work)
        advance(now - finished)
        finished = now

    return count
