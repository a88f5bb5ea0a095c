"""The search for value vectors: Adam on the deltas of many facts together, until the loss of each is small enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from factsmith.tasks.values.objective import Objective, Reads
from factsmith.tasks.values.replay import Replayed
from factsmith.tasks.values.settings import ValueSettings

__all__ = ["Search"]


class Search:
    """Searches the value vectors of F facts that take their steps together.

    On a GPU, where launching work takes longer than doing it, a step is recorded and replayed. It then has constant
    shapes and reads no result, so that facts that are finished are left out only when they are half of those that run,
    and the step is recorded again.

    A fact has one delta, or one for the MLP's output and one for the attention's. Each is clamped by the norm of its
    own output, and the weight decay is the sum of both. While all labels of a fact are the likeliest tokens, its next
    step weighs the NLL less, and the fact is finished once its divergence is small  [Li et al. 2024, section 3.3; both
    rules as in EasyEdit's code].

    Args:
        objective: prompts of the facts.
        start: (F, d_model) float32 outputs before the change, or (F, 2, d_model) those of MLP and attention.
        contexts: number of rewrite prompts of a fact.
        settings: settings of the optimiser.
        replayed: whether steps are recorded and replayed; ``None`` for on a GPU with all of the model.

    Attributes:
        done: (F,) bool, whether the loss of a fact is small enough.
        deltas: float32, as ``start``; delta of each fact when it was finished, or at the last step.
        measures: (F, 3) float32, loss, NLL and divergence with this delta.
        steps: (F,) number of evaluations of the loss until then.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        contexts: int,
        settings: ValueSettings,
        *,
        replayed: bool | None = None,
    ) -> None:
        self._objective = objective
        self._contexts = contexts
        self._settings = settings
        self._replayed = start.is_cuda and objective.decoder.stays_on_device if replayed is None else replayed
        self._pairs = start.ndim == 3
        self._largest = settings.clamp * start.norm(dim=-1, keepdim=True)
        self._decay = settings.weight_decay / start.norm(dim=-1).square()
        self._nll_weight = start.new_ones(len(start))
        self._moving = torch.zeros_like(start, requires_grad=True)
        self._optimiser = torch.optim.Adam([self._moving], lr=settings.learning_rate, capturable=start.is_cuda)
        self._unchanged: Tensor | None = None
        self.done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.deltas = torch.zeros_like(start)
        self.measures = start.new_zeros(len(start), 3)
        self.steps = torch.zeros(len(start), dtype=torch.long, device=start.device)

    def run(self) -> None:
        """Take steps until every fact is finished, or the settings allow no more."""
        finished, take_step = 0, self._step()
        for step in range(self._settings.steps):
            if step == self._settings.steps - 1:
                with torch.no_grad():
                    self._evaluate()
                return
            take_step()
            count = int(self.done.sum())
            if count == len(self.done):
                return
            new, running = count - finished, len(self.done) - finished
            if new and (2 * new >= running or not self._replayed):
                self._leave_out_finished()
                finished, take_step = count, self._step()

    def _step(self) -> Callable[[], None]:
        """Takes a step of the present facts. It is not kept here, because it refers to this search."""
        return Replayed(self._evaluate_and_move, self.done.device) if self._replayed else self._evaluate_and_move

    def _evaluate_and_move(self) -> None:
        loss = self._evaluate()
        if not self._replayed and self.done.all():
            return
        (self._moving.grad,) = torch.autograd.grad(loss.sum(), self._moving)
        self._optimiser.step()
        with torch.no_grad():
            norms = self._moving.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            self._moving.mul_((self._largest / norms).clamp(max=1))

    def _evaluate(self) -> Tensor:
        """(F,) the loss. Keeps the present deltas of the facts that were not done before."""
        reads: Reads = self._objective.read(self._moving, misses=self._pairs)
        if self._unchanged is None:
            self._unchanged = reads.essence.detach()
        nll = reads.nll / self._contexts
        kl = reads.divergence(self._unchanged)
        decay = self._decay * self._moving.norm(dim=-1)
        weighted = nll
        if self._pairs:
            # A copy, because the weight changes in place before the backward pass.
            decay, weighted = decay.sum(1), self._nll_weight.clone() * nll
        loss: Tensor = weighted + self._settings.kl_weight * kl + decay
        with torch.no_grad():
            running = ~self.done
            each = running.view(-1, *[1] * (self._moving.ndim - 1))
            self.deltas.copy_(torch.where(each, self._moving, self.deltas))
            self.measures.copy_(torch.where(running[:, None], torch.stack([loss, nll, kl], 1), self.measures))
            self.steps.add_(running)
            self.done.logical_or_(loss < self._settings.stop_loss)
            if reads.misses is not None:
                self._after_argmax(reads.misses == 0, self._settings.kl_weight * kl)
        return loss

    def _after_argmax(self, reached: Tensor, divergence: Tensor) -> None:
        """Apply PMET's rule to the facts all of whose labels are the likeliest tokens, ``reached`` (F,).

        ``divergence`` (F,) is weighted, as in EasyEdit's code.
        """
        self._nll_weight.copy_(torch.where(reached, self._settings.argmax_nll_weight, 1.0))
        self.done.logical_or_(reached & (divergence <= self._settings.argmax_divergence))

    def _leave_out_finished(self) -> None:
        assert self._unchanged is not None
        self._unchanged = self._unchanged[~self.done[self._objective.essence_facts]]
        self._objective = self._objective.without(self.done)
