"""Tokenisation of prompts: the position of the subject, and the tokens that continue a prompt.

Tokens are located only by their offsets into the text. The result is therefore correct whether or not a tokenizer adds
a BOS or makes a leading space a token of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factsmith.tasks.decoder.words import Separator, separator_between

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PLACEHOLDER", "EncodedPrompt", "encode_prompt", "is_unicode", "text_after"]

PLACEHOLDER = "{}"
"""The place of the subject in a template."""


@dataclass(frozen=True)
class EncodedPrompt:
    """The tokens of a prompt and of its continuation.

    Attributes:
        tokens: all tokens, including the special tokens that the tokenizer adds before the text, but none after it.
        continued: number of tokens of the continuation, which are the last ones.
        lookup: index of the lookup token, the subject's last token; -1 if the prompt has no subject.
        first: index of the subject's first token; -1 if the prompt has no subject.
    """

    tokens: tuple[int, ...]
    continued: int
    lookup: int = -1
    first: int = -1

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that the model reads. The last token of a continuation is only predicted."""
        return self.tokens[:-1] if self.continued else self.tokens

    @property
    def labels(self) -> tuple[int, ...]:
        """The continuation's tokens, predicted at the last ``continued`` positions of ``inputs``."""
        return self.tokens[len(self.tokens) - self.continued :]

    def fits(self, context_length: int) -> bool:
        """Whether the inputs fit into the context, and both the prompt and its continuation have tokens."""
        return 0 < self.continued <= len(self.inputs) <= context_length


def is_unicode(text: str) -> bool:
    """Whether a tokenizer can read ``text``. Half of a surrogate pair, as JSON may have it, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_prompt(
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    subject: str | None = None,
    target: str | None = None,
    separator: Separator = "auto",
    *,
    special: bool = True,
) -> EncodedPrompt:
    """Encode ``template`` with ``subject`` in its placeholder, followed by the separator and ``target``.

    With ``special``, the tokenizer adds its special tokens, such as a BOS. A text in a chat template has them already.

    The subject's tokens are those that overlap it, so a token with a leading space counts if it also contains the
    subject's first letter. A token belongs to the continuation if it contains any text after the prompt.
    """
    prompt, start, end = template, 0, 0
    if subject is not None:
        start = template.index(PLACEHOLDER)
        end = start + len(subject)
        prompt = template[:start] + subject + template[start + len(PLACEHOLDER) :]
    text = prompt
    if target is not None:
        text += separator_between(prompt, target.lstrip(), separator) + target.lstrip()
    encoding = tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
    )
    # A special token after the text, such as an EOS, would end the text that is to be continued.
    count = max((place + 1 for place, added in enumerate(encoding["special_tokens_mask"]) if not added), default=None)
    offsets: list[tuple[int, int]] = encoding["offset_mapping"][:count]
    overlapping = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    return EncodedPrompt(
        tokens=tuple(encoding["input_ids"][:count]),
        continued=sum(last > len(prompt) for _, last in offsets),
        lookup=overlapping[-1] if overlapping else -1,
        first=overlapping[0] if overlapping else -1,
    )


def text_after(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], generated: Sequence[int]) -> str:
    """The text of ``generated`` after ``prompt``. If it were decoded alone, it could lose its leading space."""
    before, whole = (
        str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for tokens in ([*prompt], [*prompt, *generated])
    )
    return whole[len(before) :]
