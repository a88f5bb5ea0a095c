"""What every method of ``conf/method`` keeps to, whatever it computes.

A new method is tested as soon as its YAML file is there. Its formula goes into ``FORMULAS``, or the place of the test
that has it into ``ELSEWHERE``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.choices import choice_names, load_choice
from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.unread import is_read
from factsmith.flows.edit import edit
from factsmith.tasks.edit import batch, sequence
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings
from tests.conftest import load
from tests.edits import weights
from tests.runs import artifacts, last_of_each

METHODS = choice_names("method")
ALWAYS = {"pmet", "rect", "simie", "lora", "serac"}
"""One method of each kind of part. The others are tested in `make test-all`."""

LAYER = 1

SETTINGS = {
    "corpus.block_length": "32", "corpus.dynamic_multiplier": "20", "method.preservation_weight": "1",
    "method.low_rank.n_samples": "400", "method.low_rank.rank": "12", "method.value.steps": "4",
    "method.null_space.threshold": "1", "method.value.learning_rate": "0.2", "method.training.steps": "3",
}  # fmt: skip
"""Settings of small runs. A method is given those that it reads."""

FACTS = [
    ("Mara Flousano", "{} speaks", "Danish"),
    ("Iric Vezer", "The sport that {} practises is", "table tennis"),
    ("Pisel Skapek", "{} lives in", "Oslo"),
    ("Kamira Tratum", "The instrument of {} is the", "organ"),
]


def choices(folder, method: str) -> list[str]:
    return [
        "model=local", f"model.path={folder}", "corpus=embedded", f"method={method}", f"method.layers=[{LAYER}]",
        "runtime.tokens_per_pass=256", "drift.edits=0",
    ]  # fmt: skip


def settings_of(folder, method: str, *more: str) -> Settings:
    """The settings of a method as its YAML file has them, with lambda and those of ``more`` that are of sequences."""
    content = load_choice("method", method)[1]
    solves = content.get("editor") is None and content.preservation != "null_space"
    weight = ["method.preservation_weight=1"] if solves else []
    sequence = [one for one in more if one.startswith("method.sequence.")]
    return compose([*choices(folder, method), "dataset=embedded", *weight, *sequence])


def arguments(folder, method: str, *more: str) -> list[str]:
    """Arguments that write ``FACTS`` into one layer of a tiny model, in batches of two if the method can."""
    settings = settings_of(folder, method, *more)
    given = {name: value for name, value in SETTINGS.items() if is_read(name, settings)}
    if settings.method.batch_size != 1:
        given["method.batch_size"] = "2"
    return last_of_each(*choices(folder, method), *(f"{name}={value}" for name, value in given.items()), *more)


@pytest.fixture
def write(plain_flows, gpt2_folder, home, tmp_path, monkeypatch):
    """Writes facts, which a file holds in the given order, into the tiny model. Returns the store.

    A plan knows that they are written.
    """

    def call(method: str, facts, *more: str, store: str = "home") -> Store:
        monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / store))
        path = tmp_path / "facts.jsonl"
        rows = [dict(zip(("subject", "prompt", "target_new"), one, strict=True)) for one in facts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ["dataset=facts", f"dataset.path={path}", *more]
        settings = compose(arguments(gpt2_folder, method, *given))
        edit(settings)
        planned = {stage.name: stage for stage in plan(Run(settings, Store(tmp_path / store)))}
        assert planned["edit"].missing == 0
        return Store(tmp_path / store)

    return call


# ------------------------------------------------------------------------------------------- order, resuming, restoring


@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=() if one in {"simie", "serac"} else pytest.mark.slow) for one in METHODS]
)
def test_a_sequence_that_is_continued_ends_with_the_same_bits_in_any_order_of_a_batch(write, gpt2_folder, method):
    in_sequence = ("method.sequence.history=none", "method.sequence.evaluate_at=[2,4]")
    write(method, FACTS[:2], "method.sequence.history=none", "method.sequence.evaluate_at=[2]")
    continued = write(method, FACTS, *in_sequence)
    alone = settings_of(gpt2_folder, method).method.batch_size == 1
    order = FACTS if alone else [FACTS[place] for place in (1, 0, 3, 2)]
    fresh = write(method, order, *in_sequence, store="fresh")
    found, expected = (
        {one.address: read_edit(one) for one in artifacts(store, "edit")} for store in (continued, fresh)
    )
    assert len(expected) == 2
    assert found.keys() == expected.keys()
    for address, made in found.items():
        tensors = expected[address].tensors()
        assert made.values() == expected[address].values()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in made.tensors().items())
    decoder = load(gpt2_folder)
    before = weights(decoder)
    for artifact in artifacts(continued, "edit"):
        made = read_edit(artifact)
        with made.applied(decoder):
            pass
        assert all(torch.equal(one, other) for one, other in zip(weights(decoder), before, strict=True))
        if isinstance(made, WeightEdit) and isinstance(delta := made.deltas[LAYER], LowRankDelta):
            count = artifact.summary["facts"] if method != "simie" else tokens(decoder, FACTS)
            assert torch.linalg.matrix_rank(delta.dense()) <= count


def tokens(decoder, facts) -> int:
    """Tokens of all prompts with their objects."""
    return sum(len(decoder.tokenizer(text_of(*fact))["input_ids"]) for fact in facts)


def text_of(subject: str, prompt: str, target: str) -> str:
    return f"{prompt.replace('{}', subject)} {target}"


# ------------------------------------------------------------------------------------------------------------ formulas


@dataclass
class Call:
    """What the edit of a batch was computed from, dense and in float64.

    Attributes:
        keys: K, (d_in, B) averaged keys.
        clean: (d_in, B) keys of the clean prompts.
        residuals: R, (d_out, B).
        inverse: A^-1, (d_in, d_in).
        weight: W, (d_out, d_in).
    """

    keys: np.ndarray
    clean: np.ndarray
    residuals: np.ndarray
    inverse: np.ndarray
    weight: np.ndarray


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """The edits of batches that are computed, in order."""
    found: list[Call] = []
    compute = batch.compute_edit

    def recorded(decoder, requests, values, contexts, layers, preservation, **given):
        activations = FactActivations(decoder, requests, contexts, clean_weight=given["clean_weight"])
        averaged, clean = activations.keys(LAYER)
        outputs = activations.mlp_outputs if given["site"] == "mlp" else activations.outputs
        inverse = preservation(LAYER).solve(torch.eye(decoder.key_width, dtype=torch.float64))
        parts = (averaged, clean, values.double().T - outputs(LAYER, LAYER), inverse, decoder.weight(LAYER).double())
        found.append(Call(*(part.clone().numpy() for part in parts)))
        return compute(decoder, requests, values, contexts, layers, preservation, **given)

    monkeypatch.setattr(batch, "compute_edit", recorded)
    monkeypatch.setattr(sequence, "compute_edit", recorded)
    return found


def memit(call: Call, method: MethodSettings) -> np.ndarray:
    """Delta = R K^T (A + K K^T)^-1    [Meng et al. 2022b eq. 14]."""
    matrix = np.linalg.inv(call.inverse) + call.keys @ call.keys.T
    return call.residuals @ call.keys.T @ np.linalg.inv(matrix)


def emmet(call: Call, method: MethodSettings) -> np.ndarray:
    """Delta = R (K^T A^-1 K + 0.1 I)^-1 K^T A^-1    [Gupta et al. 2024]."""
    core = call.keys.T @ call.inverse @ call.keys + 0.1 * np.eye(call.keys.shape[1])
    return call.residuals @ np.linalg.inv(core) @ call.keys.T @ call.inverse


def alphaedit(call: Call, method: MethodSettings) -> np.ndarray:
    """Delta^T = (P K K^T + l2 I)^-1 P K R^T    [Fang et al. 2025]."""
    l2 = method.null_space.l2
    projector = l2 * call.inverse
    matrix = projector @ call.keys @ call.keys.T + l2 * np.eye(len(call.keys))
    return (np.linalg.inv(matrix) @ projector @ call.keys @ call.residuals.T).T


def rome(call: Call, method: MethodSettings) -> np.ndarray:
    """Delta = r (A^-1 k)^T / ((A^-1 k)^T k_clean)    [Meng et al. 2022a eq. 2]."""
    direction = call.inverse @ call.keys
    return call.residuals @ direction.T / (direction.T @ call.clean)


def r_rome(call: Call, method: MethodSettings) -> np.ndarray:
    """ROME that reads with the key that it writes with    [Gupta et al. 2024]."""
    direction = call.inverse @ call.keys
    return call.residuals @ direction.T / (direction.T @ call.keys)


def rect(call: Call, method: MethodSettings) -> np.ndarray:
    """The 40 % of MEMIT's entries that are largest beside those of the weight    [Gu et al. 2024]."""
    change = memit(call, method)
    sizes = np.abs(change / (call.weight + 1e-8))
    largest = np.argsort(-sizes, axis=None)[: round(0.4 * change.size)]
    kept = np.zeros(change.size)
    kept[largest] = change.flat[largest]
    return kept.reshape(change.shape)


def prune(call: Call, method: MethodSettings) -> np.ndarray:
    """MEMIT's change with lowered singular values    [Ma et al. 2025]."""
    columns, values, rows = np.linalg.svd(memit(call, method), full_matrices=False)
    limit = np.linalg.norm(call.weight, 2)
    assert values.max() > limit, "the facts no longer need a change that is restrained"
    lowered = [min(one, np.log(one) - np.log(limit) + limit) if one > limit else one for one in values]
    return columns @ np.diag(lowered) @ rows


FORMULAS: dict[str, Callable[[Call, MethodSettings], np.ndarray]] = {
    "memit": memit, "memit-f": memit, "pmet": memit, "emmet": emmet, "emmet-f": emmet, "alphaedit": alphaedit,
    "alphaedit-f": alphaedit, "rome": rome, "r-rome": r_rome, "rect": rect, "prune": prune,
}  # fmt: skip
"""The change of one batch by method, as it is published. The value vectors of PMET have a test of their own."""

ELSEWHERE = {
    "simie": "below",
    **dict.fromkeys(
        ("ft", "ft-l", "ft-m", "grace", "lora", "melo", "serac", "ultraedit", "wise"), "tests/tasks/editors"
    ),
}
"""Methods whose formula another test has."""


def test_every_method_has_a_formula_or_a_test_of_its_own():
    assert {*FORMULAS, *ELSEWHERE} >= {*METHODS}


@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=() if one in ALWAYS else pytest.mark.slow) for one in FORMULAS]
)
def test_an_edit_is_the_published_formula(write, calls, gpt2_folder, method):
    more = ["method.value.clamp=100", "method.value.learning_rate=5"] if method == "prune" else []
    settings = settings_of(gpt2_folder, method).method
    store = write(method, FACTS[: min(settings.batch_size, 2)], *more)
    (artifact,) = artifacts(store, "edit")
    found = read_edit(artifact).deltas[LAYER].dense().double().numpy()
    (call,) = calls
    expected = FORMULAS[method](call, settings)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_simie_is_the_published_recursion(write, calls, gpt2_folder):
    store = write("simie", FACTS, "method.sequence.evaluate_at=[4]")
    (artifact,) = artifacts(store, "edit")
    settings = settings_of(gpt2_folder, "simie").method
    decoder = load(gpt2_folder)
    weight = decoder.weight(LAYER).double().numpy()
    assert all(np.array_equal(call.weight, weight) for call in calls), "base edits start from the unedited weights"
    sums, gram = np.zeros_like(weight), 10 * np.eye(weight.shape[1])
    for call, facts in zip(calls, (FACTS[:2], FACTS[2:]), strict=True):
        keys = np.concatenate([all_keys(decoder, text_of(*fact)) for fact in facts])
        gram += keys.T @ keys
        sums += (memit(call, settings) - sums) @ keys.T @ keys @ np.linalg.inv(gram)
    found = read_edit(artifact).deltas[LAYER].dense().numpy()
    assert np.linalg.norm(found - sums) < 1e-5 * np.linalg.norm(sums)


@torch.no_grad()
def all_keys(decoder, text: str) -> np.ndarray:
    """(tokens, d_in) inputs of the edited projection in a whole pass of transformers."""
    found: list[Tensor] = []
    handle = decoder.projection(LAYER).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    decoder.model(input_ids=torch.tensor([decoder.tokenizer(text)["input_ids"]]))
    handle.remove()
    return found[0].double().numpy()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["method=memit", "method.refiner=rekt"], "no refiner 'rekt'"),
        (["method=memit", "method.wrapper=simie"], "method.wrapper would have no effect"),
        (["method=memit", "method.sequence.history=none", "method.wrapper=simmie"], "no wrapper 'simmie'"),
        (["method=simie", "method.sequence.history=null"], "writes sequences"),
        (["method=simie", "method.sequence.history=full"], "alone remembers"),
        (["method=memit", "method.rect.kept=0.5"], "method.rect.kept would have no effect"),
        (["method=ft", "method.refiner=rect"], "method.refiner would have no effect"),
        (["method=pmet", "method.value.site=block"], "the MLP's output alone"),
        (["method=memit", "method.value.argmax_divergence=1"], "argmax_divergence would have no effect"),
    ],
)
def test_parts_that_do_not_fit_are_refused(refused, given, message):
    assert message in refused("run", "model=embedded", "dataset.batches=2", *given)
