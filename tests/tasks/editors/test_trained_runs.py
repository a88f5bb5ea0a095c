"""Runs of the editors that train, or take a step: planned, cached and handed over."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit
from factsmith.flows.run import run
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from tests.conftest import load, load_plain
from tests.runs import artifacts, states

SHORT = {
    "ft-l": ["method.training.steps=3", "method.ft.norm=0.01"],
    "lora": ["method.training.steps=3", "method.lora.rank=2", "method.contexts=TEMPLATES"],
    "ultraedit": ["method.ultraedit.learning_rate=0.01"],
}


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name == "lora" else [pytest.mark.slow]) for name in SHORT],
)
def method(request, tmp_path) -> list[str]:
    """The arguments that choose an editor, with two contexts if it uses any."""
    templates = tmp_path / "templates.json"
    templates.write_text('["{}", "Yes. {}"]')
    given = [one.replace("TEMPLATES", str(templates)) for one in SHORT[request.param]]
    return [f"method={request.param}", *given, "drift.edits=1"]


def test_a_run_does_what_its_plan_says_and_its_model_is_handed_over(
    plain_flows, home, store, arguments, method, gpt2_folder, tmp_path
):
    given = arguments(*method, "dataset.batches=1")
    before = {stage.name: stage for stage in plan(Run(compose(given), Store(home)))}
    assert all(stage.missing for stage in before.values())
    report = run(compose(given))
    assert list(states(report)) == list(before)
    assert not any(stage.missing for stage in plan(Run(compose(given), Store(home))))
    (made,) = artifacts(store, "edit")
    size = sum(file.stat().st_size for file in made.path.glob("*.safetensors"))
    assert size < 1.5 * before["edit"].bytes + 4096
    assert set(states(run(compose(given))).values()) == {"cached"}

    edit(compose([one for one in given if not one.startswith("drift")]), tmp_path / "out")
    tokens = torch.tensor([[5, 80, 17, 300, 33]])
    decoder = load(gpt2_folder)
    with torch.no_grad(), read_edit(made).applied(decoder):
        expected = decoder.model(tokens).logits
        assert torch.equal(load_plain(tmp_path / "out")(tokens).logits, expected)
    assert not torch.equal(decoder.model(tokens).logits, expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=ultraedit", "method.training.steps=3"], "method.training.steps would have no effect"),
        (["method=ft", "method.training.seed=1"], "method.training.seed would have no effect"),
        (["method=lora", "method.ft.norm=1"], "method.ft.norm would have no effect"),
        (["method=lora", "method.lora.modules=[attn]"], "No linear module of the edited layers is called 'attn'"),
        (["method=ultraedit", "method.batch_size=1"], "cannot write a fact alone"),
    ],
)
def test_what_an_editor_does_not_read_is_refused(refused, arguments, given, said):
    assert said in refused("run", *arguments(*given))
