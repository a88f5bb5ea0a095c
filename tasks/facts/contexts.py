"""Context templates: a prompt is edited on its own, and after a few prefixes that the model generates.

Meng et al. 2022a (section 3.1) average keys and values over prompts with random prefixes. Their public code does not
seed the prefixes, so no two of its runs agree. Here the prefixes are drawn with a seed and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.facts.reading import read_json
from factsmith.tasks.facts.settings import ContextSample

__all__ = ["CLEAN", "TOP_K", "read_contexts", "sample_contexts"]

CLEAN = PLACEHOLDER
"""The template without a prefix. It is always the first."""

TOP_K = 5
"""Each token of a prefix is drawn from this number of most likely tokens."""


@torch.inference_mode()
def sample_contexts(decoder: Decoder, samples: Sequence[ContextSample], *, seed: int) -> tuple[str, ...]:
    """The clean template, and one template for each prefix of ``samples``.

    Args:
        decoder: the unedited model.
        samples: the prefixes to sample.
        seed: seed of the sampling.

    Returns:
        Templates with one ``{}`` for the prompt: ``"{}"``, ``"The ... . {}"``, ...
    """
    generator = torch.Generator().manual_seed(seed)
    templates: list[str] = [CLEAN]
    for sample in (one for one in samples for _ in range(one.count)):
        tokens = list(encode_prompt(decoder.tokenizer, sample.start).tokens)
        while len(tokens) < sample.length:
            hidden = decoder.run(decoder.embed(pad([tokens], decoder.device)), 0, decoder.block_count)
            scores, candidates = decoder.logits(hidden[0, -1]).cpu().topk(TOP_K)
            # The token is drawn on the CPU, so that every device draws the same one.
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
            tokens.append(int(candidates[drawn]))
        prefix = str(decoder.tokenizer.decode(tokens, skip_special_tokens=True))
        templates.append(prefix.replace("{", " ").replace("}", " ") + f". {PLACEHOLDER}")
    return tuple(templates)


def read_contexts(path: Path) -> tuple[str, ...]:
    """The templates in a JSON list. The clean one comes first, and is added if it is missing.

    Raises:
        InputError: the file is not a list of texts with one ``{}`` each.
    """
    value = read_json(path.expanduser())
    if not isinstance(value, list) or not value:
        raise InputError(f"{path} is not a JSON list of context templates.", expected='["{}", "Therefore. {}", ...]')
    for index, template in enumerate(value):
        if not isinstance(template, str) or template.count(PLACEHOLDER) != 1:
            raise InputError(
                f"Template {index} of {path} (counted from 0) does not mark one place for the prompt.",
                got=repr(template),
                expected="a text with one {}",
            )
    return (CLEAN, *(template for template in value if template != CLEAN))
