"""Context templates: a prompt is edited as it stands and behind a few sentences of the model's own.

Meng et al. 2022a (section 3.1) average keys and values over prompts with random prefixes. The public code leaves the
prefixes unseeded, so that no two of its runs agree; here they are drawn from a seed and kept.
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
"""The template without a prefix, always the first."""

TOP_K = 5
"""Each next token of a prefix is drawn among this many likeliest ones."""


@torch.inference_mode()
def sample_contexts(decoder: Decoder, samples: Sequence[ContextSample], *, seed: int) -> tuple[str, ...]:
    """The clean template, and one template for each prefix of ``samples``.

    Args:
        decoder: the unedited model.
        samples: prefixes to draw.
        seed: of the sampling.

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
            # The draw is made on the CPU so that every device draws the same.
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
            tokens.append(int(candidates[drawn]))
        prefix = str(decoder.tokenizer.decode(tokens, skip_special_tokens=True))
        templates.append(prefix.replace("{", " ").replace("}", " ") + f". {PLACEHOLDER}")
    return tuple(templates)


def read_contexts(path: Path) -> tuple[str, ...]:
    """Templates of a JSON list; the clean one is put first if it is not there.

    Raises:
        InputError: not a list of texts with one ``{}`` each.
    """
    value = read_json(path.expanduser())
    if not isinstance(value, list) or not value:
        raise InputError(f"{path} is not a JSON list of context templates.", expected='["{}", "Therefore. {}", ...]')
    for index, template in enumerate(value):
        if not isinstance(template, str) or template.count(PLACEHOLDER) != 1:
            raise InputError(
                f"Template {index} of {path} (counted from 0) has no place for the prompt.",
                got=repr(template),
                expected="a text with one {}",
            )
    return (CLEAN, *(template for template in value if template != CLEAN))
