"""Drift: how far the predictions of ordinary text have moved from those of the unedited model.

At each position of a text, p is the unedited model's distribution of the next token and q the edited model's.
KL(p || q) = sum p (log p - log q), in nats, is 0 if the edit changes nothing. Its mean over positions is what the edit
does to text that has nothing to do with the facts. A high quantile tells whether it does a little everywhere or much in
a few places.  [Kullback and Leibler 1951; for side effects of edits e.g. in Hoelscher-Obermaier et al. 2023]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.evaluation.held_out.perplexity import perplexity, prompt_end

__all__ = ["MEASURES", "SCHEMA", "SCORES_IN_MEMORY", "block_drift", "drift_measures"]

SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        ("kl", pa.float64()),
        ("nll_before", pa.float64()),
        ("nll_after", pa.float64()),
        ("changed", pa.bool_()),
    ]
)
"""One row per predicted position: its block, KL(p || q), the NLL of the text's own token under p and under q (in nats),
and whether p and q have different first choices."""

MEASURES = {
    "perplexity": "perplexity of held-out text",
    "KL": "mean KL(unedited || edited) of next tokens, nats",
    "KL99": "99th percentile of this KL over positions, nats",
    "changed": "positions with another first choice, percent",
}
"""What each measure means, in the order in which they are shown."""

_SCORES = 2**23
"""Most scores over the vocabulary of each of the two models at a time. Distributions are never kept."""

SCORES_IN_MEMORY = 6 * 8 * _SCORES
"""Bytes of these scores: both models' log-probabilities in float64, and what is computed from them."""


@torch.inference_mode()
def block_drift(
    decoder: Decoder,
    blocks: Sequence[Sequence[int]],
    edits: Sequence[Edit],
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda blocks: None,
) -> list[pa.Table]:
    """Compare the unedited model with each of ``edits`` at every position of ``blocks`` but the last.

    The blocks below the first edited layer run once. The others run once for the unedited model and once for each edit.

    Args:
        decoder: the unedited model. Its weights are restored before this returns.
        blocks: token sequences, each a separate text.
        edits: the edits. Their last hidden states are in memory together.
        most_tokens: most positions in one forward pass; a longer block runs alone.
        advance: called with the number of blocks just finished, each counted once for each edit.

    Returns:
        A table of ``SCHEMA`` for each edit, with the positions in the order of the text.
    """
    first = min((edit.first_layer for edit in edits), default=decoder.block_count)
    lengths = [len(block) - 1 for block in blocks]
    starts = [0, *accumulate(lengths)]
    found = torch.zeros(len(edits), 4, starts[-1], dtype=torch.float64)
    for batch in length_batches([len(block) for block in blocks], most_tokens, spare=decoder.pass_cost):
        tokens = pad([blocks[index] for index in batch], decoder.device)
        below = decoder.run(decoder.embed(tokens), 0, first)

        def read(below: Tensor = below, batch: Sequence[int] = batch) -> Tensor:
            """The last hidden states of the predicting positions, (positions, width), with the present weights."""
            with decoder.prompted([prompt_end(len(blocks[index])) for index in batch]):
                hidden = decoder.run(below, first, decoder.block_count)
            return torch.cat([hidden[row, : lengths[index]] for row, index in enumerate(batch)])

        unedited, edited = read(), []
        for edit in edits:
            with edit.applied(decoder):
                edited.append((read(), decoder.head))
        wanted = torch.cat([tokens[row, 1 : len(blocks[index])] for row, index in enumerate(batch)])
        places = torch.cat([torch.arange(starts[index], starts[index] + lengths[index]) for index in batch])
        for part in torch.arange(len(places)).split(max(1, _SCORES // decoder.vocabulary_size)):
            here = part.to(decoder.device)
            before = decoder.logits(unedited[here]).double().log_softmax(-1)
            for number, (states, head) in enumerate(edited):
                after = head(states[here]).double().log_softmax(-1)
                found[number, :, places[part]] = _compared(before, after, wanted[here]).cpu()
        advance(len(batch) * len(edits))
    block = np.repeat(np.arange(len(blocks), dtype=np.int32), lengths)
    return [
        pa.table([block, *(columns[place].numpy() for place in range(3)), columns[3].bool().numpy()], schema=SCHEMA)
        for columns in found
    ]


def _compared(before: Tensor, after: Tensor, wanted: Tensor) -> Tensor:
    """KL, both NLL and whether the first choice differs, (4, n), from log-probabilities (n, vocabulary)."""
    kl = (before.exp() * (before - after)).sum(-1)
    nll = [-scores.gather(1, wanted[:, None])[:, 0] for scores in (before, after)]
    return torch.stack([kl, *nll, (before.argmax(-1) != after.argmax(-1)).double()])


def drift_measures(positions: pa.Table) -> dict[str, tuple[float | None, float]]:
    """Each measure before and after the edit; ``None`` before if it compares the two."""
    kl, before, after, changed = (positions[name].to_numpy() for name in ("kl", "nll_before", "nll_after", "changed"))
    count = [len(positions)]
    return {
        "perplexity": (perplexity([before.sum()], count), perplexity([after.sum()], count)),
        "KL": (None, float(kl.mean())),
        "KL99": (None, float(np.quantile(kl, 0.99))),
        "changed": (None, 100 * float(changed.mean())),
    }
