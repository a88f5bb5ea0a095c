"""Checks of edit requests that need only the tokenizer, so they run before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.blocks import opening_tokens
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.decoder.words import separator_between
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.optimiser import ESSENCE_TEMPLATE

__all__ = ["check_requests"]

_TEXTS_PER_CALL = 1024


def check_requests(
    tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest], templates: Sequence[str], context_length: int
) -> None:
    """Check that each request has tokens for its subject and its targets, and fits the model in every context.

    Args:
        tokenizer: the model's tokenizer.
        requests: the requests to write.
        templates: context templates, each with one ``{}`` for the prompt.
        context_length: most tokens that the model takes. The last token of a target is only predicted, so it does not
            count.

    Raises:
        InputError: a request cannot be written; names the case.
    """
    opening, special = len(opening_tokens(tokenizer)), frozenset(tokenizer.all_special_ids)
    for request in requests:
        _check_tokens(tokenizer, request, opening, special)
    asked: list[tuple[EditRequest, str | None]] = [
        (request, template) for request in requests for template in templates
    ]
    asked += [(request, None) for request in requests]
    for first in range(0, len(asked), _TEXTS_PER_CALL):
        group = asked[first : first + _TEXTS_PER_CALL]
        encodings = tokenizer([_text(*one) for one in group], return_attention_mask=False)["input_ids"]
        for (request, template), tokens in zip(group, encodings, strict=True):
            if len(tokens) - (template is not None) > context_length:
                raise InputError(
                    f"Case {request.case_id} does not fit the model.",
                    got=f"{len(tokens):,} tokens {_place(template)}: {_text(request, template)[:200]!r}",
                    expected=f"at most {context_length:,} tokens, not counting the last token of the target",
                    remedy="shorten the case or leave it out",
                )


def _text(request: EditRequest, template: str | None) -> str:
    """The longest text of a request in a context. Without a template, the prompt of the KL term."""
    if template is None:
        return ESSENCE_TEMPLATE.replace(PLACEHOLDER, request.subject, 1)
    prompt = template.replace(PLACEHOLDER, request.template, 1).replace(PLACEHOLDER, request.subject, 1)
    return prompt + separator_between(prompt, request.target_new, request.separator) + request.target_new


def _place(template: str | None) -> str:
    return f"in the prompt {ESSENCE_TEMPLATE!r}" if template is None else f"in context {template[:80]!r}"


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
                raise _special(tokenizer, request, name, token)


def _special(tokenizer: PreTrainedTokenizerFast, request: EditRequest, name: str, token: int) -> InputError:
    """The error about a special token in a prompt or its target, where it stands for no text."""
    special = str(tokenizer.convert_ids_to_tokens(token))
    texts = {"prompt": request.prompt, name: str(getattr(request, name))}
    written = next((one for one, text in texts.items() if special in text), None)
    return InputError(
        f"Case {request.case_id}: its {written} contains the special token {special!r} of the model's tokenizer."
        if written
        else f"Case {request.case_id}: the model's tokenizer has no token for a part of its prompt or its {name}.",
        got=" and ".join(map(repr, texts.values())),
        remedy=f"leave out {special!r}" if written else "leave out the characters that the model does not know",
    )
