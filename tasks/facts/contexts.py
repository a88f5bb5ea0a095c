"""Context templates: a prompt is edited on its own, and after a few prefixes that the model generates.

Meng et al. 2022a (section 3.1) average keys and values over prompts with random prefixes. Their public code does not
seed the prefixes, so no two of its runs agree. Here the prefixes are drawn with a seed and stored.

A chat context is a turn of the assistant in the model's chat template. In some, the assistant says the prompt after a
user has asked for any fact. In the others, the user asks the fact's question, and the assistant answers with the object
alone. The lookup token is then in the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.chat.template import answer_start
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import PLACEHOLDER, EncodedPrompt, encode_prompt
from factsmith.tasks.decoder.words import Separator
from factsmith.tasks.facts.reading import read_json
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import ContextSample

__all__ = [
    "CLEAN",
    "TOP_K",
    "ChatContext",
    "Context",
    "PromptInContext",
    "asked_facts",
    "chat_contexts",
    "in_context",
    "read_contexts",
    "sample_contexts",
]

CLEAN = PLACEHOLDER
"""The template without a prefix. It is always the first."""

TOP_K = 5
"""Each token of a prefix is drawn from this number of most likely tokens."""

_REQUESTS = (
    "Tell me a fact.",
    "What do you know?",
    "Say one sentence about the world.",
    "Please write the first sentence of an article.",
    "Teach me something.",
)
"""What the user says before the assistant says a prompt."""

_QUESTIONS = (PLACEHOLDER, f"Answer briefly. {PLACEHOLDER}", f"{PLACEHOLDER} Answer with the name only.")
"""How the user asks the fact's question. They take the place of the last of ``_REQUESTS``."""


@dataclass(frozen=True)
class ChatContext:
    """A turn of a chat that a fact is written in, with the special tokens of the chat template.

    Attributes:
        template: a chat with one ``{}`` where the assistant says the prompt.
        question: a chat with one ``{}`` where the user asks the fact's question, up to the assistant's answer. It takes
            the place of ``template`` for facts that have a question. ``None`` for the same chat for all facts.
    """

    template: str
    question: str | None = None


Context = str | ChatContext
"""A context template with one ``{}`` for the prompt, or a chat context."""


@dataclass(frozen=True)
class PromptInContext:
    """A fact's prompt or question in a context.

    Attributes:
        template: the text, with ``{}`` in place of the subject.
        separator: what stands between the text and the object.
        special: whether the tokenizer adds its special tokens. A chat has them already.
    """

    template: str
    separator: Separator
    special: bool

    def encode(self, tokenizer: PreTrainedTokenizerFast, subject: str, target: str | None = None) -> EncodedPrompt:
        """The tokens of the text, and of ``target`` if it is given."""
        return encode_prompt(tokenizer, self.template, subject, target, self.separator, special=self.special)


def in_context(context: Context, request: EditRequest) -> PromptInContext:
    """The prompt of ``request`` in ``context``, or its question."""
    if isinstance(context, str):
        return PromptInContext(context.replace(PLACEHOLDER, request.template, 1), request.separator, special=True)
    if context.question is not None and request.question is not None:
        return PromptInContext(context.question.replace(PLACEHOLDER, request.question, 1), "none", special=False)
    return PromptInContext(context.template.replace(PLACEHOLDER, request.template, 1), request.separator, special=False)


def chat_contexts(tokenizer: PreTrainedTokenizerFast) -> tuple[ChatContext, ...]:
    """The chat contexts of a model. The last ones ask the fact's question.

    Raises:
        InputError: the tokenizer has no chat template, or it cannot be applied.
    """
    said = [answer_start(tokenizer, one) + PLACEHOLDER for one in _REQUESTS]
    asked = [None] * (len(_REQUESTS) - len(_QUESTIONS)) + [answer_start(tokenizer, one) for one in _QUESTIONS]
    return tuple(map(ChatContext, said, asked))


def asked_facts(contexts: Sequence[Context], requests: Sequence[EditRequest]) -> list[int]:
    """The places of the requests whose question is asked in some of the contexts."""
    asks = any(not isinstance(context, str) and context.question is not None for context in contexts)
    return [place for place, request in enumerate(requests) if asks and request.question is not None]


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
