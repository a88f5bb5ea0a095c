"""Where prompts end in calls of a transformers model, such as ``model(...)`` and ``model.generate(...)``.

A call does not say it. It follows from the attention mask and from the cache:

- A pass without a cache, or with an empty one, is a prompt as a whole. It ends at the last token that is not padding,
  on whichever side the padding is. In ``generate``, only the tokens that were given to it are the prompt, also if
  ``use_cache=False`` repeats them in each pass.
- A pass with a filled cache continues the prompts that filled it, and the cache remembers what was decided for them.
  Row n of a pass is row n of its cache, or another beam of the same prompt.

What cannot be known is refused with a ``ValueError``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["last_tokens", "prompts_of_calls"]

_PROMPTS = "_factsmith_prompts"
"""The attribute of a cache that holds the ``Prompts`` that filled it."""


def last_tokens(mask: Tensor) -> list[int]:
    """The index of the last token of each row that ``mask`` (n, length) does not mark as padding by 0."""
    return (mask.shape[1] - 1 - mask.flip(1).ne(0).int().argmax(1)).tolist()


@contextmanager
def prompts_of_calls(decoder: Decoder) -> Iterator[None]:
    """While open, calls of ``decoder.model`` set ``decoder.prompts``. Ends that it has already are kept."""
    calls, model = _Calls(decoder), decoder.model
    handles = [
        model.register_forward_pre_hook(calls.before, with_kwargs=True),
        model.register_forward_hook(calls.after, with_kwargs=True, always_call=True),
    ]
    generate = model.generate

    @functools.wraps(generate)
    def generate_from_prompts(*args: Any, **given: Any) -> Any:
        inputs = (
            args[0]
            if args
            else next(
                (given[name] for name in ("inputs", "input_ids", "inputs_embeds") if given.get(name) is not None), None
            )
        )
        outer, calls.width = calls.width, None if inputs is None else inputs.shape[1]
        try:
            return generate(*args, **given)
        finally:
            calls.width = outer

    model.generate = generate_from_prompts
    try:
        yield
    finally:
        del model.generate
        for handle in handles:
            handle.remove()


class _Calls:
    """Finds the prompts of each call.

    Attributes:
        width: number of tokens that were given to ``generate``; ``None`` outside of it.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._outer: list[Prompts | None] = []
        self._signature = inspect.signature(decoder.model.forward)
        self.width: int | None = None

    def before(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        self._outer.append(self._decoder.prompts)
        arguments = self._signature.bind_partial(*args, **given).arguments
        prompts = self._prompts(arguments, self._decoder.prompts)
        if (cache := arguments.get("past_key_values")) is not None:
            setattr(cache, _PROMPTS, prompts)
        self._decoder.prompts = prompts

    def after(self, _: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        if not self._outer:  # The call failed in another hook before this one.
            return
        prompts, self._decoder.prompts = self._decoder.prompts, self._outer.pop()
        if (cache := getattr(output, "past_key_values", None)) is not None:
            setattr(cache, _PROMPTS, prompts)

    def _prompts(self, arguments: Mapping[str, Any], told: Prompts | None) -> Prompts:
        """The prompts of a pass with these arguments, if it is not ``told`` where they end."""
        inputs = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if inputs is None else inputs
        if inputs is None:
            raise ValueError("an edited model takes input_ids or inputs_embeds")
        rows, length = inputs.shape[:2]
        cache = arguments.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            found: Prompts | None = getattr(cache, _PROMPTS, None)
            if found is None or len(found.ends) != rows:
                raise ValueError(
                    "the cache was not filled by a pass of the edited model with as many rows, so it is not known what "
                    "was decided for its prompts"
                )
            return found
        if told is not None:
            if len(told.ends) != rows:
                raise ValueError(f"the ends of {len(told.ends)} prompts are given for a pass of {rows} rows")
            return Prompts(told.ends.tolist(), self._decoder.device)  # Each pass without a cache decides anew.
        width = length if self.width is None else self.width
        if length < width:
            raise ValueError("an edited model runs a prompt as a whole: leave out prefill_chunk_size")
        mask = arguments.get("attention_mask")
        if mask is None and (rows == 1 or self.width is not None):  # ``generate`` leaves out a mask without padding.
            mask = torch.ones(rows, length)
        if not isinstance(mask, Tensor) or mask.shape != (rows, length):
            raise ValueError(
                "it is not known where the prompts end: give an attention_mask of (rows, tokens) with 0 at padding"
            )
        return Prompts(last_tokens(mask[:, :width]), self._decoder.device)
