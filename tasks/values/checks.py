"""Whether a request can be written into a model at all, seen from its tokens before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.optimiser import ESSENCE_TEMPLATE

__all__ = ["check_requests"]

_AT_ONCE = 1024


def check_requests(
    tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest], templates: Sequence[str], context_length: int
) -> None:
    """See that each request has tokens to be written at and with, and fits the model in every context.

    Args:
        tokenizer: the model's.
        requests: to be written.
        templates: context templates, each with one ``{}`` for the prompt.
        context_length: most tokens the model takes. The last one of a target is only predicted, so it does not count.

    Raises:
        InputError: names the case.
    """
    for request in requests:
        _check_tokens(tokenizer, request)
    asked: list[tuple[EditRequest, str | None]] = [
        (request, template) for request in requests for template in templates
    ]
    asked += [(request, None) for request in requests]
    for first in range(0, len(asked), _AT_ONCE):
        some = asked[first : first + _AT_ONCE]
        encodings = tokenizer([_text(*one) for one in some], return_attention_mask=False)["input_ids"]
        for (request, template), tokens in zip(some, encodings, strict=True):
            if len(tokens) - (template is not None) > context_length:
                raise InputError(
                    f"Case {request.case_id} does not fit the model.",
                    got=f"{len(tokens):,} tokens, {_place(template)}: {_text(request, template)[:200]!r}",
                    expected=f"at most {context_length:,} tokens and one more of the target",
                    remedy="shorten it or leave it out",
                )


def _text(request: EditRequest, template: str | None) -> str:
    """The longest text a request is fed as in a context; without one, the prompt of the divergence."""
    if template is None:
        return ESSENCE_TEMPLATE.replace(PLACEHOLDER, request.subject, 1)
    prompt = template.replace(PLACEHOLDER, request.template, 1).replace(PLACEHOLDER, request.subject, 1)
    return f"{prompt} {request.target_new.lstrip()}"


def _place(template: str | None) -> str:
    return f"in {ESSENCE_TEMPLATE!r}" if template is None else f"in context {template[:80]!r}"


def _check_tokens(tokenizer: PreTrainedTokenizerFast, request: EditRequest) -> None:
    for name, target in (("target_new", request.target_new), ("target_true", request.target_true)):
        if target is None:
            continue
        encoded = encode_prompt(tokenizer, request.template, request.subject, target)
        nothing = None
        if encoded.lookup < 0:
            nothing = f"its subject {request.subject!r}"
        elif not encoded.continued or encoded.lookup >= len(encoded.tokens) - encoded.continued:
            nothing = f"its {name} {target!r}"
        if nothing:
            raise InputError(f"Case {request.case_id}: the model's tokenizer has no token for {nothing}.")
