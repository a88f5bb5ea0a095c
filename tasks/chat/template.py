"""A model's chat template, applied as text: a user's turn, and the start of the assistant's.

A template writes all special tokens itself, so its text is encoded without those that the tokenizer adds
(``encode_prompt`` with ``special=False``). A template that writes a BOS gives one, and one that writes none gives none,
as ``apply_chat_template`` of transformers does. There is no system turn of ours. Many templates write a default one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import PLACEHOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["answer_start", "can_chat", "end_of_turn", "in_chat"]

_CONSTANTS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Variables that some templates read. Qwen 3's then leaves room for no reasoning before the answer. Llama 3's would
write the present date, and results would depend on the day."""

_ANSWER = "Answer"


def can_chat(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer has a chat template that can be applied."""
    try:
        in_chat(tokenizer, PLACEHOLDER)
    except InputError:
        return False
    return True


def in_chat(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """``question`` as the user's turn, followed by the generation prompt.

    Raises:
        InputError: there is no chat template, or it cannot be applied.
    """
    return _rendered(tokenizer, [{"role": "user", "content": question}])


def answer_start(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """``in_chat``, up to where the words of the assistant begin.

    Some templates, such as Llama 2's, write a blank between the generation prompt and these words.

    Raises:
        InputError: there is no chat template, or it cannot be applied.
    """
    return in_chat(tokenizer, question) + _around_answer(tokenizer)[0]


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The special token that the template writes after the assistant's words; empty if it writes none.

    Raises:
        InputError: there is no chat template, or it cannot be applied.
    """
    after = tokenizer(_around_answer(tokenizer)[1].lstrip(), add_special_tokens=False)["input_ids"]
    return frozenset(after[:1]) & tokenizer.added_tokens_decoder.keys()


def _around_answer(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The blank that the template writes before an answer, and the text that it writes after it."""
    before = in_chat(tokenizer, PLACEHOLDER)
    turns = [{"role": "user", "content": PLACEHOLDER}, {"role": "assistant", "content": _ANSWER}]
    whole = _rendered(tokenizer, turns)
    start, _, after = whole.rpartition(_ANSWER)
    return (start[len(before) :] if start.startswith(before) and start[len(before) :].isspace() else ""), after


def _rendered(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            "The model's tokenizer has no chat template, so a question cannot be asked in one.",
            expected="an instruction-tuned model, whose tokenizer has a chat_template",
            remedy="choose another model, or leave out --chat, the metric family chat and method.contexts",
        )
    asks = turns[-1]["role"] == "user"
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks, **_CONSTANTS))
    except Exception as error:  # Whatever it is, the template is at fault.
        raise InputError(
            "The chat template of the model's tokenizer cannot be applied to a question.",
            got=f"{type(error).__name__}: {error}"[:200],
            remedy="correct chat_template in the tokenizer's files",
        ) from None
    if turns[0]["content"] not in text:
        raise InputError("The chat template of the model's tokenizer leaves out the question.", got=repr(text[:200]))
    return text
