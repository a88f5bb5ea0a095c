"""Value vectors, against a plain loop over whole forward passes of transformers, one fact at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.optimiser import NonFiniteValueError, optimise_values
from factsmith.tasks.values.settings import ValueSettings
from tests.conftest import hidden_of

CONTEXTS = ("{}", "The judge plays the flute. {}", "Therefore Rome. {}", "I know. {}")
LAYER = 1
SETTINGS = ValueSettings(steps=12, learning_rate=0.3, clamp=3.0, weight_decay=0.5, kl_weight=0.0625, stop_loss=6.2)
MEMORY = 2**28


def facts() -> list[EditRequest]:
    rows = [
        ("Mara Flousano", "{} speaks", "Danish"),
        ("Mara Flousano", "The home town of {} is", "New York"),
        ("Ilo", "{} is a", "music critic"),
        ("Pisel Skapek", "{}", "Oslo"),
        ("Iric Vezer", "The sport that {} practises is", "table tennis"),
        ("A", "{} grew up speaking", "x"),
        ("Kamira Tratum", "The instrument of {} is the", "organ"),
    ]
    return [EditRequest(index, *row) for index, row in enumerate(rows)]


@dataclass
class Reference:
    value: torch.Tensor
    loss: float
    steps: int


def reference(decoder, request: EditRequest, settings: ValueSettings = SETTINGS) -> Reference:
    """Meng et al. 2022b as the public code does it: everything recomputed from the first token, every step.

    In blocks with a norm after the MLP, delta is a step of the norm's input instead.
    """
    model, tokenizer = decoder.model, decoder.tokenizer
    prompts = [
        encode_prompt(tokenizer, context.replace("{}", request.template), request.subject, request.target_new)
        for context in CONTEXTS
    ]
    essence = encode_prompt(tokenizer, "{} is a", request.subject)
    delta = torch.zeros(decoder.width, requires_grad=True)
    start: list[torch.Tensor] = []
    state = {"lookup": 0}

    def change(_module, _inputs, output):
        hidden = hidden_of(output).clone()
        at = hidden[0, state["lookup"]]
        size = at.square().mean().sqrt() if normed else 1
        if not start:
            start.append((at / size).detach().clone())
        at += size * delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def logits(prompt):
        state["lookup"] = prompt.lookup
        return model(input_ids=torch.tensor([prompt.inputs])).logits[0]

    normed = hasattr(decoder.blocks[LAYER], "post_feedforward_layernorm")
    changed = decoder.projection(LAYER) if normed else decoder.blocks[LAYER]
    handle = changed.register_forward_hook(change)
    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    unchanged = None
    for step in range(settings.steps):
        optimiser.zero_grad()
        nlls = []
        for prompt in prompts:
            scores = logits(prompt)[-prompt.continued :].log_softmax(-1)
            nlls.append(-scores[torch.arange(prompt.continued), torch.tensor(prompt.labels)].mean())
        current = logits(essence)[essence.lookup].log_softmax(-1)
        unchanged = current.detach() if unchanged is None else unchanged
        kl = torch.nn.functional.kl_div(unchanged, current, log_target=True, reduction="sum")
        decay = settings.weight_decay * delta.norm() / start[0].norm() ** 2
        loss = torch.stack(nlls).mean() + settings.kl_weight * kl + decay
        if loss < settings.stop_loss or step == settings.steps - 1:
            break
        loss.backward()
        optimiser.step()
        largest = settings.clamp * start[0].norm()
        if delta.norm() > largest:
            with torch.no_grad():
                delta.mul_(largest / delta.norm())
    value = [(start[0] + delta).detach()]
    if normed:
        keep = decoder.blocks[LAYER].register_forward_hook(lambda *args: value.append(args[2][0, state["lookup"]]))
        with torch.no_grad():
            logits(prompts[0])
        keep.remove()
    handle.remove()
    return Reference(value[-1], loss.item(), step + 1)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return float((one - other).norm() / other.norm()) < tolerance


def optimise(decoder, requests, settings=SETTINGS, memory=MEMORY):
    return optimise_values(decoder, requests, CONTEXTS, LAYER, settings, memory=memory)


def test_agrees_with_the_plain_loop(decoder):
    found = optimise(decoder, facts())
    stops = set()
    for request, vector in zip(facts(), found, strict=True):
        expected = reference(decoder, request)
        assert vector.steps == expected.steps
        assert vector.loss == pytest.approx(expected.loss, rel=1e-3)
        assert close(vector.value, expected.value)
        stops.add(expected.steps)
    assert len(stops) > 1, "the settings no longer make facts stop at different steps"


def test_the_clamp_holds(decoder):
    tight = SETTINGS.model_copy(update={"clamp": 0.2, "stop_loss": 0.0, "steps": 5})  # It is reached in the first.
    for request, vector in zip(facts()[:2], optimise(decoder, facts()[:2], tight), strict=True):
        if decoder.output_norm(LAYER) is None:
            assert (vector.value - vector.start).norm() <= 0.2 * vector.start.norm() * (1 + 1e-5)
        assert close(vector.value, reference(decoder, request, tight).value)


@pytest.mark.one_family
@pytest.mark.parametrize("memory", [1, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_fact_does_not_depend_on_the_others(decoder, memory):
    together = optimise(decoder, facts())
    parted = optimise(decoder, facts(), memory=memory)
    backwards = optimise(decoder, facts()[::-1])[::-1]
    for one, other, third in zip(together, parted, backwards, strict=True):
        assert close(one.value, other.value)
        assert close(one.value, third.value)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_first_and_the_last_block(decoder, layer):
    settings = SETTINGS.model_copy(update={"stop_loss": 0.0, "steps": 4})
    found = optimise_values(decoder, facts()[:3], CONTEXTS, layer, settings, memory=MEMORY)
    assert all(vector.steps == 4 and torch.isfinite(vector.value).all() for vector in found)
    assert all(not torch.equal(vector.value, vector.start) for vector in found)


def test_only_what_a_change_can_reach_runs_again(decoder):
    """Blocks up to the edited one run once; above it, a step runs the positions from the lookup token on."""
    settings = SETTINGS.model_copy(update={"stop_loss": 0.0, "steps": 5})
    positions = {block: [] for block in range(decoder.block_count)}
    handles = [
        block.register_forward_hook(lambda _m, inputs, _o, at=at: positions[at].append(inputs[0].shape[:2].numel()))
        for at, block in enumerate(decoder.blocks)
    ]
    requests = facts()
    optimise(decoder, requests, settings)
    for handle in handles:
        handle.remove()
    prompts = [
        encode_prompt(decoder.tokenizer, context.replace("{}", one.template), one.subject, one.target_new)
        for one in requests
        for context in CONTEXTS
    ]
    essences = [encode_prompt(decoder.tokenizer, "{} is a", one.subject) for one in requests]
    everything = sum(len(prompt.inputs) for prompt in prompts + essences)
    suffixes = sum(len(prompt.inputs) - prompt.lookup for prompt in prompts) + sum(
        len(prompt.inputs) - prompt.lookup for prompt in essences
    )
    for layer in range(LAYER + 1):
        assert sum(positions[layer]) < 1.6 * everything  # once, with the padding of one pass
    above = sum(positions[LAYER + 1]) - sum(positions[LAYER])
    assert above <= settings.steps * 1.15 * suffixes


def test_no_graph_and_no_gradient_is_left_on_the_model(decoder):
    optimise(decoder, facts()[:2])
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in decoder.model.parameters())


def test_a_value_that_is_not_a_number_names_its_fact(decoder):
    with torch.no_grad():
        decoder.weight(LAYER + 1)[0, 0] = float("inf")
    with pytest.raises(NonFiniteValueError) as caught:
        optimise(decoder, facts()[2:4])
    assert caught.value.request == facts()[2]
