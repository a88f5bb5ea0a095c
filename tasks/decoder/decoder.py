"""A language model as the science sees it: blocks that can be run one by one, tapped, and edited."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast

from factsmith.tasks.decoder.layout import HFModel, Layout, canonical_weight
from factsmith.tasks.decoder.placement import execution_device, is_offloaded, state_dict
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.decoder.quiet import quiet_transformers

__all__ = ["Decoder", "Part", "StopForward"]

Part = Literal["mlp", "attention"]
"""What a block adds to the residual stream."""


class StopForward(Exception):  # noqa: N818 - it ends a pass, it is not an error
    """Raised by a tap when nothing above it is wanted."""


class Decoder:
    """A causal language model with its tokenizer and its family's layout.

    Tensors of tokens and positions are (n, length), int64; hidden states are (n, length, d_model) in the model's dtype.
    All that comes or goes is on ``device``, wherever the blocks run. Layers count from 0. The weights never take a
    gradient.
    """

    def __init__(self, model: HFModel, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layout = layout
        self.blocks = layout.blocks(model)
        self._offloaded = [is_offloaded(block) for block in self.blocks]
        self.key_width = layout.key_width(model.config)
        self.context_length = layout.context_length(model.config)

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

    def projection(self, layer: int) -> nn.Module:
        """The module whose weight is edited at ``layer``."""
        return self.layout.projection(self.blocks[layer])

    def weight(self, layer: int) -> Tensor:
        """The edited weight of ``layer``, (d_out, d_in): a view of the parameter, on the CPU if it lies there."""
        return canonical_weight(self.projection(layer))

    def save(self, folder: Path) -> None:
        """Write the weights as they are now, as a checkpoint without tokenizer."""
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            # Transformers would take tied weights that are offloaded for two.
            self.model.save_pretrained(folder, state_dict=state_dict(self.model))

    # ------------------------------------------------------------------ running

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states before block 0 of right-padded ``tokens`` (n, length), at 0, 1, ... if not told otherwise."""
        positions = self._positions(tokens.shape[1]) if positions is None else positions
        return self.layout.embed(self.model, tokens, positions).to(self.device)

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
            positions: (n, length) or (1, length); 0, 1, ... if not given.
            mask: (n, 1, length, keys), true where a query may look; plain causal attention if not given. Right
                padding needs none: no real position looks at what is behind it.
            cache: what earlier positions left behind, per block.
        """
        if start >= stop:
            return hidden
        if positions is None:
            positions = self._positions(hidden.shape[1])
        shared = self.layout.shared(self.model, hidden, positions)
        for layer in range(start, stop):
            step = partial(self.layout.run_block, self.blocks[layer], mask=mask, cache=cache, shared=shared)
            if self._offloaded[layer] and hidden.requires_grad and torch.is_grad_enabled():
                # The graph would hold every block's weights until the backward pass, all of them on the device at
                # once. Run again there instead, to the end, so that the hook takes the weights away again.
                hidden = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False, early_stop=False)
            else:
                hidden = step(hidden)
        return hidden.to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., vocabulary) of the next token, in float32, from the last block's output (..., d_model)."""
        scores: Tensor = self.model.get_output_embeddings()(self.layout.final_norm(self.model)(hidden))
        return scores.to(self.device).float()

    @contextmanager
    def tapped(self, layers: Sequence[int], sink: Callable[[int, Tensor], None], *, stop: bool) -> Iterator[None]:
        """While open, hand the keys of ``layers`` to ``sink(layer, (n, length, d_k))`` as a pass reaches them.

        With ``stop``, the pass ends at the projection of the last of ``layers``: what follows is never computed.
        """
        last = max(layers)

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                sink(layer, inputs[0].to(self.device))
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
        """While open, ``change(layer, output)`` stands in for what a part of each of ``layers`` puts out.

        Args:
            part: the MLP, at its output projection, or the attention.
            layers: where.
            change: gives (n, length, d_model) for (n, length, d_model); the output itself to only look at it.
        """

        def hook(layer: int) -> Callable[[nn.Module, Any, Any], Any]:
            def put(_: nn.Module, __: Any, output: Any) -> Any:
                if isinstance(output, tuple):
                    return change(layer, output[0]), *output[1:]
                return change(layer, output)

            return put

        with ExitStack() as stack:
            for layer in layers:
                module = self.projection(layer) if part == "mlp" else self.layout.attention(self.blocks[layer])
                stack.callback(module.register_forward_hook(hook(layer)).remove)
            yield

    def _positions(self, length: int) -> Tensor:
        return torch.arange(length, device=self.device)[None]
