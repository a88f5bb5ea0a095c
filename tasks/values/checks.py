"""Checks of edit requests that need only the tokenizer, so they run before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.blocks import opening_tokens
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.decoder.words import separator_between
from factsmith.tasks.facts.contexts import Context, in_context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.optimiser import ESSENCE_TEMPLATE

__all__ = ["check_requests"]

_TEXTS_PER_CALL = 1024


def check_requests(
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[EditRequest],
    contexts: Sequence[Context],
    context_length: int,
) -> None:
    """Check that each request has tokens for its subject and its targets, and fits the model in every context.

    Args:
        tokenizer: the model's tokenizer.
        requests: the requests to write.
        contexts: the contexts that they are written in.
        context_length: most tokens that the model takes. The last token of a target is only predicted, so it does not
            count.

    Raises:
        InputError: a request cannot be written; names the case.
    """
    opening, special = len(opening_tokens(tokenizer)), frozenset(tokenizer.all_special_ids)
    for request in requests:
        _check_tokens(tokenizer, request, opening, special)
    plain = [context for context in contexts if isinstance(context, str)]
    chats = [context for context in contexts if not isinstance(context, str)]
    _check_lengths(tokenizer, requests, [*plain, None], context_length, special=True)
    _check_lengths(tokenizer, requests, chats, context_length, special=False)


def _check_lengths(
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[EditRequest],
    contexts: Sequence[Context | None],
    context_length: int,
    *,
    special: bool,
) -> None:
    """Check that every request fits the model in every context, with or without the tokenizer's special tokens."""
    asked = [(request, context) for context in contexts for request in requests]
    for first in range(0, len(asked), _TEXTS_PER_CALL):
        group = asked[first : first + _TEXTS_PER_CALL]
        texts = [_text(*one) for one in group]
        encodings = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
        for (request, context), text, tokens in zip(group, texts, encodings, strict=True):
            if len(tokens) - (context is not None) > context_length:
                raise InputError(
                    f"Case {request.case_id} does not fit the model.",
                    got=f"{len(tokens):,} tokens {_place(context)}: {text[:200]!r}",
                    expected=f"at most {context_length:,} tokens, not counting the last token of the target",
                    remedy="shorten the case or leave it out",
                )


def _text(request: EditRequest, context: Context | None) -> str:
    """The longest text of a request in a context. Without a context, the prompt of the KL term."""
    if context is None:
        return ESSENCE_TEMPLATE.replace(PLACEHOLDER, request.subject, 1)
    asked = in_context(context, request)
    prompt = asked.template.replace(PLACEHOLDER, request.subject, 1)
    return prompt + separator_between(prompt, request.target_new, asked.separator) + request.target_new


def _place(context: Context | None) -> str:
    if context is None:
        return f"in the prompt {ESSENCE_TEMPLATE!r}"
    return f"in context {context[:80]!r}" if isinstance(context, str) else "in the chat template"


def _check_tokens(
    tokenizer: PreTrainedTokenizerFast, request: EditRequest, opening: int, special: Collection[int]
) -> None:
    for name, target in (("target_new", request.target_new), ("target_true", request.target_true)):
        if target is None:
            continue
        encoded = encode_prompt(tokenizer, request.template, request.subject, target, request.separator)
        missing = None
        if encoded.lookup < 0:
            missing = f"its subject {request.subject!r}"
        elif not encoded.continued or encoded.lookup >= len(encoded.tokens) - encoded.continued:
            missing = f"its {name} {target!r}"
        if missing:
            raise InputError(f"Case {request.case_id}: the model's tokenizer has no token for {missing}.")
        for token in encoded.tokens[opening:]:
            if token in special:
                raise _special(tokenizer, request, {"prompt": request.prompt, name: target}, token)
    if request.question is not None:
        question = request.question.replace(PLACEHOLDER, request.subject, 1)
        for token in encode_prompt(tokenizer, question).tokens[opening:]:
            if token in special:
                raise _special(tokenizer, request, {"question": question}, token)


def _special(
    tokenizer: PreTrainedTokenizerFast, request: EditRequest, texts: Mapping[str, str], token: int
) -> InputError:
    """The error about a special token in a text of a request, by name, where it stands for no text."""
    special = str(tokenizer.convert_ids_to_tokens(token))
    written = next((one for one, text in texts.items() if special in text), None)
    return InputError(
        f"Case {request.case_id}: its {written} contains the special token {special!r} of the model's tokenizer."
        if written
        else f"Case {request.case_id}: the model's tokenizer has no token for a part of its {' or its '.join(texts)}.",
        got=" and ".join(map(repr, texts.values())),
        remedy=f"leave out {special!r}" if written else "leave out the characters that the model does not know",
    )
