"""ROME and r-ROME, against their published formula on keys and outputs read by hooks."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.batch import applied, compute_edit
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.planning.preflight import check_input
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.values.optimiser import optimise_values
from factsmith.tasks.values.settings import ValueSettings
from tests.runs import tiny_arguments

CONTEXTS = ("{}", "The judge plays the flute. {}", "Therefore Rome. {}", "I know. {}")
FACT = EditRequest(0, "Iric Vezer", "The sport that {} practises is", "table tennis")
LAYER = 1


@pytest.fixture
def covariance(decoder) -> torch.Tensor:
    keys = torch.randn(200, decoder.key_width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return keys.T @ keys / len(keys)


@pytest.fixture
def value(decoder) -> torch.Tensor:
    """An output that the MLP can have, after the norm if there is one."""
    return added(decoder, torch.randn(1, decoder.width, generator=torch.Generator().manual_seed(1)))


def row(states: torch.Tensor, place: int) -> torch.Tensor:
    """The state at ``place`` of one text. Blocks of OPT join the rows of a batch; those of Falcon write into it."""
    return states.reshape(-1, states.shape[-1])[place].clone()


@torch.no_grad()
def read(decoder, context: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the edited projection at the subject's last token, from a whole forward pass."""
    prompt = encode_prompt(decoder.tokenizer, context.replace("{}", FACT.template), FACT.subject)
    found = []
    handle = decoder.projection(LAYER).register_forward_hook(
        lambda _, inputs, output: found.append((row(inputs[0], prompt.lookup), row(output, prompt.lookup)))
    )
    decoder.model(input_ids=torch.tensor([prompt.tokens]))
    handle.remove()
    return found[0]


def added(decoder, output: torch.Tensor) -> torch.Tensor:
    """What the edited block adds to the residual stream for an output of its projection."""
    norm = getattr(decoder.blocks[LAYER], "post_feedforward_layernorm", None)
    return output if norm is None else norm(output)


def rome(decoder, covariance, value, read_keys: str):
    operator = FullPreservation.from_covariance(covariance, weight=3.0)
    (delta,) = compute_edit(
        decoder, [FACT], value, CONTEXTS, [LAYER], lambda layer: operator, slack=0.0, site="mlp", clean_weight=None,
        read_keys=read_keys, most_tokens=10_000,
    ).values()  # fmt: skip
    return delta


@pytest.mark.parametrize("read_keys", ["clean", "averaged"])
def test_agrees_with_the_published_formula(decoder, covariance, value, read_keys):
    """Delta = (v* - W k) (C^-1 k)^T / ((C^-1 k)^T k_read)   [Meng et al. 2022a eq. 2]."""
    keys, outputs = zip(*(read(decoder, context) for context in CONTEXTS), strict=True)
    key = torch.stack(keys).double().mean(0)
    direction = torch.linalg.solve(covariance, key)
    read_key = keys[0].double() if read_keys == "clean" else key
    change = value[0].double() - added(decoder, outputs[0]).double()
    if (norm := decoder.output_norm(LAYER)) is not None:
        change = norm.needed(outputs[0][None].double(), change[None])[0]
    expected = torch.outer(change, direction) / (direction @ read_key)
    found = rome(decoder, covariance, value, read_keys).dense()
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_rome_meets_the_value_at_the_clean_prompt(decoder, covariance, value):
    with applied(decoder, {LAYER: rome(decoder, covariance, value, "clean")}):
        assert torch.allclose(added(decoder, read(decoder, "{}")[1]), value[0], atol=1e-4)


def test_the_two_differ_when_contexts_do(decoder, covariance, value):
    one, other = (rome(decoder, covariance, value, name).dense() for name in ("clean", "averaged"))
    assert (one - other).norm() > 1e-3 * one.norm()


def test_a_value_at_the_mlp_starts_from_its_output(decoder):
    settings = ValueSettings(site="mlp", steps=5, learning_rate=0.3, clamp=0.7)
    (vector,) = optimise_values(decoder, [FACT], CONTEXTS, LAYER, settings, memory=2**28)
    assert torch.allclose(vector.start, added(decoder, read(decoder, "{}")[1]), atol=1e-5)
    assert (vector.value - vector.start).norm() <= 0.7001 * vector.start.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.batch_size=3"], "writes one fact at a time"),
        (["method.layers=[0,1]", "method.batch_size=1"], "edits one layer"),
    ],
)
def test_what_rome_cannot_do_is_refused(gpt2_folder, tmp_path, arguments, message):
    settings = compose(tiny_arguments(gpt2_folder, "method=rome", *arguments))
    with pytest.raises(InputError, match=message):
        check_input(Run(settings, Store(tmp_path)), dataset=True)
