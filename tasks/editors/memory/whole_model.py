"""A counterfactual model that is another model, of any family and width, with the same vocabulary.

It reads the tokens that the edited model reads, at the same positions and under the same masks. For the positions that
it answers, its logits take the place of the edited model's, after everything that these two do to their logits. Its
attention keys and values have places in the edited model's cache, so that rows are chosen and put in order for both
models together.

Passes of a decoder run it block by block (``states`` and ``logits``). A call of the transformers model is followed by
a call of the other one (``call``).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast
from transformers.cache_utils import Cache, DynamicCache

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import layout_for
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.editors.memory.counterfactual import FurtherLayers
from factsmith.tasks.model.loading import model_of
from factsmith.tasks.model.tensors import named

__all__ = ["Reader", "WholeModel", "answered_by", "check_counterfactual"]

_PROBES = (
    "The mother tongue of Danielle Darrieux is French.",
    ' In 1984, 3.14 and 1,000,000 were numbers;\tso they say:\n\n"naïve" façades, don\'t they?',
    "def f(x): return x ** 2  # α β, Привет, 你好, 🙂",
    "",
)
"""Texts that two tokenizers of the same vocabulary must encode alike."""


@dataclass(frozen=True)
class Reader:
    """How a model reads text.

    Attributes:
        tokenizer: its tokenizer.
        rows: number of rows of its embedding.
        length: the most tokens that it takes.
    """

    tokenizer: PreTrainedTokenizerFast
    rows: int
    length: int


def check_counterfactual(name: str, model: Reader, other: Reader) -> None:
    """Check that ``other`` can answer in place of ``model``.

    Args:
        name: the value of the setting that chooses ``other``.
        model: the edited model.
        other: the counterfactual model.

    Raises:
        InputError: it has another vocabulary, encodes text in another way, or takes shorter texts.
    """
    setting = f"method.serac.counterfactual={name}"
    remedy = "choose a smaller model of the same series, such as distilbert/distilgpt2 for GPT-2 XL"
    vocabulary, others = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if vocabulary != others:
        differ = {token for token, _ in vocabulary.items() ^ others.items()}
        raise InputError(
            "The counterfactual model reads and gives tokens of the edited model, and has another vocabulary.",
            got=f"{setting}, where {len(differ):,} tokens are others: {named(map(repr, differ))}",
            expected=f"the same {len(vocabulary):,} tokens with the same numbers",
            remedy=remedy,
        )
    if other.rows < (needed := min(model.rows, max(vocabulary.values()) + 1)):
        raise InputError(
            "The counterfactual model has no embedding for some tokens that the edited model reads.",
            got=f"{setting}, with {other.rows:,} rows",
            expected=f"at least {needed:,} rows",
            remedy=remedy,
        )
    for probe in _PROBES:
        own, its = (list(encode_prompt(one.tokenizer, probe).tokens) for one in (model, other))
        if own != its:
            raise InputError(
                "The tokenizer of the counterfactual model divides text in another way than the edited model's.",
                got=f"{setting}, which makes {its[:12]} of {probe[:40]!r}",
                expected=f"{own[:12]}",
                remedy=remedy,
            )
    if other.length < model.length:
        raise InputError(
            "The counterfactual model takes shorter texts than the edited model.",
            got=f"{setting}, at most {other.length:,} tokens",
            expected=f"at least {model.length:,}",
            remedy=remedy,
        )


@dataclass(frozen=True)
class WholeModel:
    """What a counterfactual model has besides its blocks.

    Attributes:
        config: its config, as values of JSON.
        weights: its parameters outside of the blocks, by name, in the data type in which they were loaded.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, decoder: Decoder) -> Self:
        config = json.loads(decoder.model.config.to_json_string())
        config.pop("transformers_version", None)  # The same model has the same bytes in any version.
        blocks = {id(one) for one in decoder.blocks.parameters()}
        weights = {name: one.detach().cpu() for name, one in decoder.model.named_parameters() if id(one) not in blocks}
        return cls(config, weights)

    @property
    def vocabulary(self) -> int:
        """Number of rows of the output embedding."""
        return int(self._config().vocab_size)

    def decoder(self, blocks: Mapping[str, Tensor], beside: Decoder) -> Decoder:
        """The whole model, on the device of the model ``beside`` it and in its data type.

        Args:
            blocks: the parameters of its blocks, by the number of the block and the name within it.
            beside: a model with the same tokenizer.
        """
        config = self._config()
        layout = layout_for(config, "of an edit")
        empty = empty_model(config, beside.model.dtype)
        (place,) = (name for name, module in empty.named_modules() if module is layout.blocks(empty))
        tensors = {**self.weights, **{f"{place}.{name}": one for name, one in blocks.items()}}
        return Decoder(model_of(empty, layout, tensors, beside.device), beside.tokenizer, layout)

    def _config(self) -> PretrainedConfig:
        return AutoConfig.for_model(**self.config)


@contextmanager
def answered_by(
    decoder: Decoder, other: Decoder, starts: Callable[[], None], answered: Callable[[int], Tensor]
) -> Iterator[None]:
    """While open, ``other`` answers for some positions of the passes and calls of a model.

    Args:
        decoder: the model.
        other: the counterfactual model.
        starts: called when a pass starts.
        answered: gives the positions of the present pass that ``other`` answers for, (n, length) bool, from its length.
            It is asked when the model's last block has run.
    """
    beside = _Beside(decoder, other, answered)
    with ExitStack() as stack:
        stack.callback(decoder.blocks[0].register_forward_pre_hook(lambda *_: starts()).remove)
        stack.callback(decoder.model.register_forward_hook(beside.call, with_kwargs=True).remove)
        stack.callback(setattr, decoder, "beside", decoder.beside)
        decoder.beside = beside
        yield


class _Beside:
    """Runs the other model after a pass or a call of the model."""

    def __init__(self, decoder: Decoder, other: Decoder, answered: Callable[[int], Tensor]) -> None:
        self._decoder = decoder
        self._other = other
        self._answered = answered
        self._takes = inspect.signature(decoder.model.forward)
        self._takes_positions = "position_ids" in inspect.signature(other.model.forward).parameters

    # ------------------------------------------------------------------ passes of a decoder

    def states(
        self, hidden: Tensor, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, cache: PrefixCache | None
    ) -> Tensor:
        """Hidden states of both models and 1 for the positions that the other one answers, (n, length, d + d' + 1).

        If it answers none, these are ``hidden`` alone.
        """
        answered = self._answered(hidden.shape[1])
        if not answered.any():  # None of these rows will ever be answered, so the cache does not need them either.
            return hidden
        other = self._other
        # Blocks call nothing but its ``update``.
        further: Any = FurtherLayers(cache, self._decoder.block_count) if cache is not None else None
        embedded = other.embed(tokens, positions)
        own = other.run(embedded, 0, other.block_count, positions=positions, mask=mask, cache=further)
        return torch.cat([hidden, own.to(hidden), answered[..., None].to(hidden)], dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        width = self._decoder.width
        found = self._decoder.own_logits(hidden[..., :width].contiguous())
        if hidden.shape[-1] == width:
            return found
        answered = hidden[..., -1] > 0
        own = self._other.logits(hidden[..., width:-1][answered])
        return found.index_put((answered,), _fitted(own, found.shape[-1]).to(found))

    # ------------------------------------------------------- calls of the transformers model

    def call(self, _: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        """Put the other model's logits into the ``output`` of a call."""
        arguments = self._takes.bind_partial(*args, **given).arguments
        tokens = arguments.get("input_ids")
        if tokens is None:
            raise ValueError("a counterfactual model of its own reads tokens: give input_ids, not inputs_embeds")
        if arguments.get("labels") is not None or isinstance(output, tuple):
            raise ValueError(
                "a counterfactual model of its own changes logits alone: leave out labels and return_dict=False, and "
                "compute a loss from the logits"
            )
        answered = self._answered(tokens.shape[1])
        if not answered.any():
            return
        kept = arguments.get("logits_to_keep", 0)
        columns = slice(-kept, None) if isinstance(kept, int) else kept
        cache = arguments.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        before = 0 if cache is None else cache.get_seq_length() - tokens.shape[1]
        mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
        if positions is None:
            positions = _positions(tokens, mask, before)
        device = self._other.device
        found = self._other.model(
            input_ids=tokens.to(device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=None if cache is None else self._view(cache, before),
            use_cache=cache is not None,
            logits_to_keep=kept,
            **({"position_ids": positions.to(device)} if self._takes_positions else {}),
        )
        own = _fitted(found.logits, output.logits.shape[-1]).to(output.logits)
        if cache is not None and len(cache.layers) == self._decoder.block_count:
            cache.layers.extend(found.past_key_values.layers)
        chosen = answered[:, columns].to(own.device)[..., None]
        output.logits = torch.where(chosen, own, output.logits)

    def _view(self, cache: Cache, before: int) -> DynamicCache:
        """The part of the model's cache that belongs to the other model, as a cache of its own.

        Args:
            cache: the model's cache, after its pass.
            before: number of positions that it had before this pass.
        """
        if not isinstance(cache, DynamicCache):
            raise ValueError(f"a counterfactual model needs a DynamicCache, not one of {type(cache).__name__}")
        view = DynamicCache(config=self._other.model.config)
        if before:
            view.layers = cache.layers[self._decoder.block_count :]
            if not view.layers or view.get_seq_length() != before:
                raise ValueError("the cache does not have the positions of the counterfactual model")
        return view


def _positions(tokens: Tensor, mask: Tensor | None, before: int) -> Tensor:
    """The positions of ``tokens`` (n, length) that follow ``before`` others: a padded token takes no place."""
    length = tokens.shape[1]
    if mask is not None and mask.dim() == 2 and mask.shape[1] == before + length:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, before:]
    return torch.arange(before, before + length, device=tokens.device)[None].expand_as(tokens)


def _fitted(logits: Tensor, size: int) -> Tensor:
    """``logits`` (..., own size) of a model whose output embedding may have another number of unused rows.

    Rows beyond ``size`` belong to no token. Rows that are missing get the least logit.
    """
    if (missing := size - logits.shape[-1]) <= 0:
        return logits[..., :size]
    least = logits.amin(-1, keepdim=True)
    return torch.cat([logits, least.expand(*logits.shape[:-1], missing)], dim=-1)
