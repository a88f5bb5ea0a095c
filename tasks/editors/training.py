"""What editors that train share: the loss of facts under the present weights, and weights that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import EncodedPrompt
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Fit, NotWrittenError, Task, Written
from factsmith.tasks.facts.contexts import in_context
from factsmith.tasks.facts.request import EditRequest

__all__ = [
    "FactPrompts",
    "Labels",
    "check_losses",
    "minimise",
    "numbered_generator",
    "trained_changes",
    "written_with",
]


@dataclass(frozen=True)
class Labels:
    """The tokens of new objects that a pass predicts.

    Attributes:
        prompts: (rows,) index of the prompt in each row of the pass.
        rows: (labels,) row of each label.
        columns: (labels,) position that predicts it.
        tokens: (labels,) int64, the labels.
        shares: (labels,) float32, one over the number of labels of the row.
    """

    prompts: list[int]
    rows: list[int]
    columns: list[int]
    tokens: Tensor
    shares: Tensor

    def by_prompt(self, each: Tensor) -> Tensor:
        """(rows,) mean over the labels of each row, of (labels,) values."""
        rows = torch.tensor(self.rows, device=each.device)
        return each.new_zeros(len(self.prompts)).index_add(0, rows, each * self.shares)


class FactPrompts:
    """The prompts of B facts, each in every context and followed by the new object.

    Args:
        decoder: the model.
        task: the facts and the contexts.
        first: the blocks below this one do not change. They run once.
        teacher_forced: whether each token of the object is predicted after those before it. If not, all of them are
            predicted after the prompt alone.

    Attributes:
        present: the fact of each row of the present pass, while ``run`` is in it.
    """

    def __init__(self, decoder: Decoder, task: Task, first: int, *, teacher_forced: bool = True) -> None:
        self.task = task
        self._decoder = decoder
        self._first = first
        self._teacher_forced = teacher_forced
        self.present: list[int] = []
        self._prompts: list[EncodedPrompt] = [
            in_context(context, request).encode(decoder.tokenizer, request.subject, request.target_new)
            for request in task.requests
            for context in task.contexts
        ]
        lengths = [len(prompt.inputs) for prompt in self._prompts]
        self._batches = list(length_batches(lengths, task.most_tokens, spare=decoder.pass_cost))
        with torch.no_grad():
            self._below = [
                decoder.run(decoder.embed(pad([self._prompts[row].inputs for row in batch], decoder.device)), 0, first)
                for batch in self._batches
            ]

    def losses(self, backward: bool) -> Tensor:
        """(B,) float32 loss of each fact: the mean over its contexts of the mean NLL per token of the new object.

        With ``backward``, the gradient of their mean is added to that of everything that requires one.
        """
        found = torch.zeros(len(self._prompts), device=self._decoder.device)

        def take(labels: Labels, each: Tensor) -> None:
            by_prompt = labels.by_prompt(each)
            if backward:
                (by_prompt.sum() / len(self._prompts)).backward()
            found[labels.prompts] = by_prompt.detach()

        self.run(take, backward)
        return found.view(-1, len(self.task.contexts)).mean(1)

    def run(self, use: Callable[[Labels, Tensor], None], backward: bool) -> None:
        """Run all prompts, and call ``use`` with the labels of each pass and their NLL (labels,) float32.

        With ``backward``, the NLL can be differentiated in ``use``, so that the graph of only one pass is in memory.
        """
        for batch, below in zip(self._batches, self._below, strict=True):
            self.present = [row // len(self.task.contexts) for row in batch]
            with torch.set_grad_enabled(backward), self._decoder.prompted([self._end(row) for row in batch]):
                hidden = self._decoder.run(below, self._first, self._decoder.block_count)
                labels = self._labels(batch)
                scores = self._decoder.logits(hidden[labels.rows, labels.columns])
                use(labels, torch.nn.functional.cross_entropy(scores, labels.tokens, reduction="none"))

    @torch.no_grad()
    def keys(self) -> Tensor:
        """(B, contexts, d_k) float32 keys of block ``first`` at the last token of each prompt."""
        found = torch.zeros(len(self._prompts), self._decoder.key_width, device=self._decoder.device)
        for batch, below in zip(self._batches, self._below, strict=True):

            def take(_: int, keys: Tensor, batch: Sequence[int] = batch) -> None:
                found[batch] = keys[list(range(len(batch))), [self._end(row) for row in batch]].float()

            with self._decoder.tapped([self._first], take, stop=True):
                self._decoder.run(below, self._first, self._first + 1)
        return found.view(len(self.task.requests), -1, self._decoder.key_width)

    def labels(self) -> list[tuple[int, ...]]:
        """The tokens of the new object of each fact, after its prompt in the first context."""
        return [prompt.labels for prompt in self._prompts[:: len(self.task.contexts)]]

    def _end(self, row: int) -> int:
        """The index of the last token of a prompt."""
        prompt = self._prompts[row]
        return len(prompt.inputs) - prompt.continued

    def _labels(self, batch: list[int]) -> Labels:
        prompts, device = [self._prompts[row] for row in batch], self._decoder.device
        rows = [place for place, prompt in enumerate(prompts) for _ in prompt.labels]
        steps = [at if self._teacher_forced else 0 for prompt in prompts for at in range(prompt.continued)]
        columns = [self._end(batch[row]) + step for row, step in zip(rows, steps, strict=True)]
        tokens = torch.tensor([label for prompt in prompts for label in prompt.labels], device=device)
        shares = torch.tensor([1 / prompts[row].continued for row in rows], device=device)
        return Labels(batch, rows, columns, tokens, shares)


def minimise(
    prompts: FactPrompts,
    parameters: Sequence[Tensor],
    after_step: Callable[[], None] = lambda: None,
    *,
    further: Callable[[], Tensor] | None = None,
    optimiser: type[torch.optim.Adam] | type[torch.optim.SGD] = torch.optim.Adam,
) -> list[Fit]:
    """Minimise the loss of facts over ``parameters``, as ``method.training`` says.

    It stops before the step if the mean loss is below ``stop_loss``.

    Args:
        prompts: the facts.
        parameters: what is trained, float32.
        after_step: called after each step.
        further: computes another loss of each fact, (B,), which is added.
        optimiser: the kind of optimiser.

    Raises:
        NotWrittenError: the loss of a fact is NaN or infinite.
    """
    settings = prompts.task.method.training
    descent = optimiser(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps + 1):
        last = step == settings.steps
        descent.zero_grad(set_to_none=True)
        losses = prompts.losses(backward=not last)
        if further is not None:
            with torch.set_grad_enabled(not last):
                more = further()
            if not last:
                more.mean().backward()
            losses = losses + more.detach()
        check_losses(losses, prompts.task.requests)
        if last or float(losses.mean()) < settings.stop_loss:
            break
        descent.step()
        after_step()
    return [Fit(step, float(loss)) for loss in losses]


def check_losses(losses: Tensor, requests: Sequence[EditRequest]) -> None:
    """Check the losses (B,) of facts.

    Raises:
        NotWrittenError: one of them is NaN or infinite; names the first such fact.
    """
    if not (finite := losses.isfinite()).all():
        raise NotWrittenError(requests[int((~finite).int().argmax())])


def written_with(edit: Edit, decoder: Decoder, prompts: FactPrompts, fits: Sequence[Fit]) -> Written:
    """What an editor leaves whose edit may answer otherwise than what it trained. Losses are those with the edit."""
    with edit.applied(decoder):
        losses = prompts.losses(backward=False).tolist()
    return Written(edit, [Fit(fit.steps, loss) for fit, loss in zip(fits, losses, strict=True)])


def numbered_generator(seed: int, number: int) -> torch.Generator:
    """A generator on the CPU for the part ``number`` of what is drawn with ``seed``."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**32)  # It uses only 32 bits of a seed.


@contextmanager
def trained_changes(decoder: Decoder, before: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Changes of edited weights as parameters to train, each (d_out, d_in) float32. The model has them while open.

    The weights themselves stay as they are, so that a change is not rounded to the model's dtype at each step.

    Args:
        decoder: the model.
        before: the changes to start from, by layer.
    """
    changes = {layer: one.to(decoder.device).float().clone().requires_grad_() for layer, one in before.items()}

    def hook(change: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            here = change.to(output.device)
            return output + torch.nn.functional.linear(inputs[0].float(), here).to(output.dtype)

        return add

    with ExitStack() as stack:
        for layer, change in changes.items():
            stack.callback(decoder.projection(layer).register_forward_hook(hook(change)).remove)
        yield changes
