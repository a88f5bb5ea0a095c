"""PMET's value vectors, against a plain loop over whole forward passes of transformers  [Li et al. 2024]."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.values.objective import Reads
from factsmith.tasks.values.optimiser import optimise_values
from factsmith.tasks.values.search import Search
from factsmith.tasks.values.settings import ValueSettings
from factsmith.tasks.values.suffixes import Suffixes
from tests.edits import facts

CONTEXTS = ("{}", "The judge plays the flute. {}", "Therefore Rome. {}")
LAYER = 1
SETTINGS = ValueSettings(
    site="mlp", attention=True, steps=8, learning_rate=0.3, clamp=3.0, weight_decay=0.01, stop_loss=6.2
)


def optimise(decoder, settings=SETTINGS, layer=LAYER):
    return optimise_values(decoder, facts(), CONTEXTS, layer, settings, memory=2**28)


def plain_attention(block):
    """The attention of a block, known apart from the layouts."""
    names = ("attn", "self_attn", "attention", "self_attention")
    (found,) = (getattr(block, name) for name in names if hasattr(block, name))
    return getattr(found, "dense", found)


class Reference:
    """One fact as EasyEdit's code has it. Both changes are steps of a norm's input where a norm follows the MLP."""

    def __init__(self, decoder, request) -> None:
        self.decoder, self.request, self.lookup = decoder, request, 0
        self.deltas = torch.zeros(2, decoder.width, requires_grad=True)
        self.start: dict[int, torch.Tensor] = {}
        self.normed = decoder.output_norm(LAYER) is not None

    def hook(self, part: int):
        def change(_module, _inputs, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            at = states.reshape(-1, states.shape[-1])[self.lookup]
            size = at.square().mean().sqrt() if self.normed else 1
            self.start.setdefault(part, at.detach().clone())
            place = torch.zeros(states.shape[:-1].numel(), 1)
            place[self.lookup] = 1
            states = states + (place * (size * self.deltas[part])).view_as(states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return change

    def logits(self, prompt):
        self.lookup = prompt.lookup
        return self.decoder.model(input_ids=torch.tensor([prompt.inputs])).logits[0]

    def run(self, settings: ValueSettings) -> tuple[torch.Tensor, int, float]:
        """The value vector, the number of evaluations and the last loss."""
        decoder, request = self.decoder, self.request
        block = decoder.blocks[LAYER]
        parts = (decoder.projection(LAYER), plain_attention(block))
        handles = [module.register_forward_hook(self.hook(part)) for part, module in enumerate(parts)]
        prompts = [
            encode_prompt(decoder.tokenizer, one.replace("{}", request.template), request.subject, request.target_new)
            for one in CONTEXTS
        ]
        essence = encode_prompt(decoder.tokenizer, "{} is a", request.subject)
        optimiser = torch.optim.Adam([self.deltas], lr=settings.learning_rate)
        unchanged = None
        for step in range(settings.steps):
            nlls = []
            for prompt in prompts:
                scores = self.logits(prompt)[-prompt.continued :].log_softmax(-1)
                labels = torch.tensor(prompt.labels)
                nlls.append(-scores[torch.arange(prompt.continued), labels].mean())
            current = self.logits(essence)[essence.lookup].log_softmax(-1)
            unchanged = current.detach() if unchanged is None else unchanged
            kl = settings.kl_weight * torch.nn.functional.kl_div(unchanged, current, log_target=True, reduction="sum")
            norms = [1.0 if not self.normed else decoder.width**0.5 / self.start[at].norm() for at in (0, 1)]
            sizes = [norms[at] * self.start[at].norm() for at in (0, 1)]
            decay = sum(self.deltas[at].norm() / sizes[at] ** 2 for at in (0, 1))
            loss = torch.stack(nlls).mean() + kl + settings.weight_decay * decay
            if loss < settings.stop_loss or step == settings.steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                for at in (0, 1):
                    self.deltas[at] *= min(1.0, settings.clamp * sizes[at] / self.deltas[at].norm())
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            before = self.start[0]
            size = before.square().mean().sqrt() if self.normed else 1
            value = before + size * self.deltas[0]
            return (block.post_feedforward_layernorm(value) if self.normed else value), step + 1, float(loss)


def test_agrees_with_the_plain_loop(decoder):
    stops = set()
    for request, vector in zip(facts(), optimise(decoder), strict=True):
        value, steps, loss = Reference(decoder, request).run(SETTINGS)
        assert vector.steps == steps
        assert vector.loss == pytest.approx(loss, rel=1e-3)
        assert (vector.value - value).norm() < 1e-3 * value.norm()
        stops.add(steps)
    assert len(stops) > 1, "the settings no longer make facts stop at different steps"


class Targets:
    """An objective whose NLL is what is missing to a target, and whose labels are met close to it.

    The divergence grows with the sum of the deltas.
    """

    decoder = SimpleNamespace(stays_on_device=True)

    def read(self, deltas: torch.Tensor, *, misses: bool) -> Reads:
        assert misses
        nll = (2 - deltas.sum((1, 2))).clamp(min=0)
        essence = torch.stack([deltas.sum((1, 2)), torch.zeros(len(deltas))], 1).log_softmax(-1)
        return Reads(nll, essence, torch.arange(len(deltas)), (nll > 0.5).float())


def test_a_target_that_is_the_likeliest_weighs_less_and_ends_the_search():
    settings = SETTINGS.model_copy(
        update={"weight_decay": 0.0, "kl_weight": 1e-3, "steps": 30, "learning_rate": 0.1, "stop_loss": 0.0}
    )
    start = torch.ones(1, 2, 1)
    end = Search(Targets(), start, 1, settings.model_copy(update={"argmax_divergence": 1.0}))
    end.run()
    # Adam moves both deltas by the learning rate at each step. After 8 of them, 0.4 is missing.
    assert end.steps.tolist() == [9]
    loss, nll, _ = end.measures[0].tolist()
    assert (loss, nll) == pytest.approx((0.4, 0.4), abs=1e-2)
    further = Search(Targets(), start, 1, settings.model_copy(update={"argmax_divergence": 0.0, "steps": 10}))
    further.run()
    loss, nll, divergence = further.measures[0].tolist()
    assert nll == pytest.approx(0.2, abs=1e-2)
    assert loss == pytest.approx(0.1 * nll + 1e-3 * divergence, abs=1e-6)


def test_without_the_attention_it_is_memit_at_the_mlps_output(decoder, monkeypatch):
    block = Suffixes._block
    only_mlp = torch.tensor([1.0, 0.0])[:, None]
    monkeypatch.setattr(Suffixes, "_block", lambda self, changes: block(self, changes * only_mlp))
    rules = {"argmax_nll_weight": 1.0, "argmax_divergence": 0.0, "steps": 6}
    pmet = optimise(decoder, SETTINGS.model_copy(update=rules))
    memit = optimise(decoder, SETTINGS.model_copy(update={"attention": False, "steps": 6}))
    for one, other in zip(pmet, memit, strict=True):
        assert one.steps == other.steps
        assert (one.value - other.value).norm() < 1e-4 * other.value.norm()


def test_both_clamps_hold_and_the_first_and_last_block_can_be_edited(decoder):
    tight = SETTINGS.model_copy(update={"clamp": 0.1, "steps": 4, "stop_loss": 0.0})
    for layer in (0, decoder.block_count - 1):
        for vector in optimise(decoder, tight, layer):
            assert not torch.equal(vector.value, vector.start)
            if decoder.output_norm(layer) is None:
                assert (vector.value - vector.start).norm() <= 0.1001 * vector.start.norm()
