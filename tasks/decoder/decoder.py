"""A language model as knowledge editing sees it: a stack of blocks that can be run, read and edited one by one."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.layout import HFModel, Layout, canonical_weight
from factsmith.tasks.decoder.output_norm import OutputNorm
from factsmith.tasks.decoder.placement import execution_device, is_offloaded, state_dict
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.decoder.quiet import quiet_transformers

__all__ = ["Beside", "Decoder", "Part", "StopForward"]

_PASS_COST_OF_A_CPU = 32
"""Single facts take a third less time with any number from 16 to 96 than with 0. Many facts take the same time."""

_PASS_COST_OF_A_GPU = 512
"""Estimated from what it takes to launch the kernels of a block and to read its weights. Not measured yet."""

Part = Literal["mlp", "attention"]
"""The part of a block whose output is added to the residual stream."""


class Beside(Protocol):
    """Another model, which answers for some positions of a decoder's passes in its place."""

    def states(
        self, hidden: Tensor, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, cache: PrefixCache | None
    ) -> Tensor:
        """The last hidden states ``hidden`` (n, length, d_model) of a pass, with what ``logits`` reads beside them.

        The other arguments are those of the pass, and its tokens.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) in float32 from some of the ``states`` (..., width)."""


class StopForward(Exception):  # noqa: N818 - it ends a pass and is not an error
    """Raised in a hook to end a forward pass whose remaining blocks are not needed."""


class Decoder:
    """A causal language model with its tokenizer and its family's layout.

    Tensors of tokens and positions are (n, length), int64; hidden states are (n, length, d_model) in the model's dtype.
    All inputs and outputs are on ``device``, whichever devices the blocks run on. Layers are counted from 0. The
    weights do not require gradients.

    Args:
        model: the transformers model.
        tokenizer: its tokenizer.
        layout: the layout of its family.
        whole: false for a model of the first blocks of another one, which gives hidden states and keys only.

    Attributes:
        prompts: the prompts of the present passes, if their ends are known. See ``prompted``.
        has_memory: whether a module of the model reads ``prompts``. Inputs then only share a pass if their prompts end
            at the same place.
        beside: another model that answers for some positions; ``None`` if there is none. A pass then has to start at
            the embedding.
    """

    def __init__(
        self, model: HFModel, tokenizer: PreTrainedTokenizerFast, layout: Layout, *, whole: bool = True
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layout = layout
        self.whole = whole
        self.blocks = layout.blocks(model)
        self._offloaded = [is_offloaded(block) for block in self.blocks]
        self.key_width = layout.key_width(model.config)
        self.context_length = layout.context_length(model.config)
        self._shape = torch.Size([1, 1])
        self.prompts: Prompts | None = None
        self.has_memory = False
        self.beside: Beside | None = None
        self._embedded: tuple[weakref.ref[Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return execution_device(self.model.get_input_embeddings())

    @property
    def block_count(self) -> int:
        return len(self.blocks)

    @property
    def width(self) -> int:
        """d_model."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def pass_cost(self) -> int:
        """The number of positions that take about as long as another pass does: launches, and reading the weights."""
        return _PASS_COST_OF_A_GPU if self.device.type == "cuda" else _PASS_COST_OF_A_CPU

    @property
    def stays_on_device(self) -> bool:
        """Whether a pass stays on one device: all weights are there, and no block reads a result on the CPU."""
        places = {parameter.device for parameter in self.model.parameters()}
        return len(places) == 1 and not any(self._offloaded) and not self.layout.waits(self.model.config)

    def projection(self, layer: int) -> nn.Module:
        """The module whose weight is edited at ``layer``."""
        return self.layout.projection(self.blocks[layer])

    def weight(self, layer: int) -> Tensor:
        """The edited weight of ``layer``, (d_out, d_in): a view of the parameter, on the CPU if it is offloaded."""
        return canonical_weight(self.projection(layer))

    def output_norm(self, layer: int) -> OutputNorm | None:
        """The norm between the MLP of ``layer`` and the residual stream, if there is one."""
        norm = self.layout.output_norm(self.blocks[layer])
        return None if norm is None else OutputNorm(norm)

    def save(self, folder: Path) -> None:
        """Write the current weights as a checkpoint without a tokenizer."""
        self._need(whole=True)
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            # Without an explicit state dict, transformers would save tied weights twice if they are offloaded.
            self.model.save_pretrained(folder, state_dict=state_dict(self.model))

    # ------------------------------------------------------------------ running

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states before block 0 of right-padded ``tokens`` (n, length). The default positions are 0, 1, ..."""
        positions = self._positions(tokens.shape[1]) if positions is None else positions
        hidden = self.layout.embed(self.model, tokens, positions).to(self.device)
        self._embedded = weakref.ref(hidden), tokens
        return hidden

    def run(
        self,
        hidden: Tensor,
        start: int,
        stop: int,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: PrefixCache | None = None,
    ) -> Tensor:
        """Hidden states after blocks ``start`` to ``stop - 1``.

        Args:
            hidden: (n, length, d_model), the input of block ``start``.
            start: the first block to run.
            stop: the block to stop before.
            positions: (n, length) or (1, length); ``None`` for 0, 1, ...
            mask: (n, 1, length, keys), true where a query may attend; ``None`` for plain causal attention. Right
                padding needs no mask, because no real position attends to the padding after it.
            cache: attention keys and values of earlier positions, for each block.
        """
        self._need(blocks=stop)
        if start >= stop:
            return hidden
        tokens = self._tokens(hidden) if self.beside is not None else None
        given = positions
        if positions is None:
            positions = self._positions(hidden.shape[1])
        self._shape = hidden.shape[:2]
        shared = self.layout.shared(self.model, hidden, positions)
        for layer in range(start, stop):
            step = partial(self.layout.run_block, self.blocks[layer], mask=mask, cache=cache, shared=shared)
            if self._offloaded[layer] and hidden.requires_grad and torch.is_grad_enabled():
                # The graph would keep the weights of every block until the backward pass, all of them on the device at
                # the same time. The backward pass therefore runs the block again. It runs it to the end, so that
                # accelerate's hook removes the weights from the device afterwards.
                hidden = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False, early_stop=False)
            else:
                hidden = step(hidden)
        hidden = hidden.to(self.device)
        if self.beside is None or tokens is None or stop < self.block_count:
            return hidden
        return self.beside.states(hidden, tokens, given, mask, cache)

    @contextmanager
    def prompted(self, ends: Sequence[int]) -> Iterator[Prompts]:
        """While open, all passes run these prompts or continue them.

        Args:
            ends: index of the last token of each row's prompt.
        """
        outer, self.prompts = self.prompts, Prompts(ends, self.device)
        try:
            yield self.prompts
        finally:
            self.prompts = outer

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of the next token, in float32, from the last block's output (..., d_model)."""
        return self.head(hidden)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """``logits`` of the model as it is now, for hidden states that are read when it is another one again."""
        return self.own_logits if self.beside is None else self.beside.logits

    def own_logits(self, hidden: Tensor) -> Tensor:
        """``logits`` without those of a model beside this one."""
        self._need(whole=True)
        return self.layout.logits(self.model, hidden).to(self.device).float()

    @contextmanager
    def tapped(self, layers: Sequence[int], sink: Callable[[int, Tensor], None], *, stop: bool) -> Iterator[None]:
        """While open, call ``sink(layer, keys)`` with the keys (n, length, d_k) of each of ``layers`` during a pass.

        With ``stop``, the pass ends at the projection of the last of ``layers``, and nothing above it is computed.
        """
        last = max(layers)

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                sink(layer, self._by_row(inputs[0]).to(self.device))
                if stop and layer == last:
                    raise StopForward

            return take

        handles = [self.projection(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
        try:
            yield
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def rewritten(self, part: Part, layers: Sequence[int], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """While open, replace the output of a part of each of ``layers`` by ``change(layer, output)``.

        Args:
            part: the MLP (the output of its output projection) or the attention.
            layers: the layers whose outputs are replaced.
            change: takes and returns (n, length, d_model). To only read the output, it returns it unchanged.
        """

        def hook(layer: int) -> Callable[[nn.Module, Any, Any], Any]:
            def put(_: nn.Module, __: Any, output: Any) -> Any:
                whole = output[0] if isinstance(output, tuple) else output
                changed = change(layer, self._by_row(whole).to(self.device)).to(whole.device).view_as(whole)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return put

        with ExitStack() as stack:
            for layer in layers:
                module = self.projection(layer) if part == "mlp" else self.layout.attention(self.blocks[layer])
                stack.callback(module.register_forward_hook(hook(layer)).remove)
            yield

    def _by_row(self, states: Tensor) -> Tensor:
        """(n, length, width) states of the present pass, of which some blocks join the rows."""
        return states.view(*self._shape, -1)

    def _need(self, blocks: int = 0, *, whole: bool = False) -> None:
        if blocks > self.block_count or (whole and not self.whole):
            raise RuntimeError(f"only the first {self.block_count} blocks of this model were loaded")

    def _tokens(self, hidden: Tensor) -> Tensor:
        """The tokens of which ``embed`` has just made ``hidden``."""
        if self._embedded is None or self._embedded[0]() is not hidden:
            raise RuntimeError("a pass of a model beside which another one answers must start at the embedding")
        return self._embedded[1]

    def _positions(self, length: int) -> Tensor:
        return torch.arange(length, device=self.device)[None]
