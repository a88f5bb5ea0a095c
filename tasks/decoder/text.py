"""From text to tokens: where a subject ends, and which tokens continue a prompt.

Only offsets into the text are trusted. Whether a tokenizer adds a BOS, or writes a leading space as a piece of its
own, then changes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

__all__ = ["PLACEHOLDER", "EncodedPrompt", "encode_prompt"]

PLACEHOLDER = "{}"
"""Where a template takes its subject."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of a prompt and of what continues it.

    Attributes:
        tokens: all of them, with the special tokens that the tokenizer puts before them, and none behind.
        continued: how many of the last tokens are the continuation's.
        lookup: index of the subject's last token; -1 if the prompt names no subject.
        first: index of the subject's first token; -1 likewise.
    """

    tokens: tuple[int, ...]
    continued: int
    lookup: int = -1
    first: int = -1

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model is fed: a continuation's last token is only ever predicted."""
        return self.tokens[:-1] if self.continued else self.tokens

    @property
    def labels(self) -> tuple[int, ...]:
        """The continuation's tokens, predicted at the last ``continued`` positions of ``inputs``."""
        return self.tokens[len(self.tokens) - self.continued :]

    def fits(self, context_length: int) -> bool:
        """Whether a model can be fed all of it, and both the prompt and what continues it have tokens."""
        return 0 < self.continued <= len(self.inputs) <= context_length


def encode_prompt(
    tokenizer: PreTrainedTokenizerFast, template: str, subject: str | None = None, target: str | None = None
) -> EncodedPrompt:
    """Encode ``template``, its placeholder filled with ``subject``, continued after one space with ``target``.

    The lookup index is the last token that overlaps the subject, and a leading space belongs to the subject's first
    token. A token belongs to the continuation when it holds anything behind the prompt.
    """
    prompt, start, end = template, 0, 0
    if subject is not None:
        start = template.index(PLACEHOLDER)
        end = start + len(subject)
        prompt = template[:start] + subject + template[start + len(PLACEHOLDER) :]
    text = prompt if target is None else f"{prompt} {target.lstrip()}"
    encoding = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False
    )
    # What a tokenizer puts behind the text (an EOS) would end what is to be continued.
    count = max((place + 1 for place, added in enumerate(encoding["special_tokens_mask"]) if not added), default=None)
    offsets: list[tuple[int, int]] = encoding["offset_mapping"][:count]
    overlapping = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    return EncodedPrompt(
        tokens=tuple(encoding["input_ids"][:count]),
        continued=sum(last > len(prompt) for _, last in offsets),
        lookup=overlapping[-1] if overlapping else -1,
        first=overlapping[0] if overlapping else -1,
    )
