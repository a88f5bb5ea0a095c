"""From arguments to settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choices
from factsmith.flows.configuration.composition import compose, compose_again
from factsmith.flows.configuration.keys import describe_settings

CF = ["model=cf-gpt2", "model.path=m", "corpus.path=c.jsonl", "dataset.path=d.json"]


def test_the_default_is_the_embedded_model():
    settings = compose()
    assert [settings.model.name, settings.corpus.name, settings.dataset.name] == ["embedded"] * 3
    assert settings.method.name == "memit"
    assert settings.dataset.split == "test"


def test_arguments_win_over_the_method_and_the_method_over_the_model():
    settings = compose([*CF, "method=emmet", "method.value.steps=7", "method.layers=[1,2]"])
    assert settings.method.slack == 0.1  # the method's
    assert settings.method.value.clamp == 1.5  # the model's, for every method
    assert settings.method.value.steps == 7  # the word's
    assert settings.method.layers == [1, 2]


def test_a_model_may_want_a_method_otherwise(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "name: mine\npath: somewhere\ndefaults: {corpus: embedded, dataset: embedded}\n"
        "editing: {layers: [3, 4], preservation_weight: 5}\nmethods: {emmet: {layers: [4]}}\n"
    )
    assert compose([f"model={own}"]).method.layers == [3, 4]
    settings = compose([f"model={own}", "method=emmet"])
    assert settings.method.layers == [4]
    assert settings.method.preservation_weight == 5


def test_arguments_of_all_kinds():
    given = ["corpus=local", "dataset=counterfact", "dataset.cases=known.json", "corpus.dynamic_multiplier=10"]
    settings = compose([*CF, *given, "method.batch_size=64", "dataset.batches=6", "method.ridge=auto"])
    assert str(settings.dataset.cases) == "known.json"
    assert settings.method.batch_size == 64
    assert settings.method.ridge == "auto"
    assert compose(["corpus.dynamic_multiplier=auto"]).corpus.multipliers == [2, 3, 4, 6, 8, 10, 15, 20, 30, 40]
    assert compose(["dataset.cases=[1,2]"]).dataset.cases == [1, 2]
    assert compose(["method.ridge=1e-2"]).method.ridge == 0.01


def test_a_metric_family_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match=r"dataset\.metrics names a metric family twice"):
        compose(["dataset.metrics=[counterfact,greedy,counterfact]"])


@pytest.mark.parametrize("name", ["method", "method.layers"])
def test_an_argument_that_is_given_twice_is_refused(name):
    with pytest.raises(InputError, match=f"{name} is given twice"):
        compose([f"{name}=[0]", f"{name}=[1]"])


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        compose().method.slack = 3


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["method=memmit"], "no method 'memmit'", "did you mean 'memit'"),
        (["model=zzz"], "no model 'zzz'", "cf-gpt2"),
        (["method.batchsize=3"], "no setting 'method.batchsize'", "did you mean 'batch_size'"),
        (["methd.batch_size=3"], "no setting 'methd.batch_size'", "did you mean 'method.batch_size'"),
        (["model.layers=[1]"], "no setting 'model.layers'", "did you mean 'method.layers'"),
        (["method.value.lr=1"], "no setting 'method.value.lr'", "learning_rate"),
        (["nonsense"], "'nonsense' is not understood", ""),
        (["=3"], "not understood", ""),
        (["model=cf-gpt2"], "must be given", "path=..."),
        (["method.batch_size=many"], "method.batch_size cannot be used", ""),
        (["method.batch_size=0"], "method.batch_size cannot be used", ""),
        (["method.layers=[]"], "method.layers cannot be used", ""),
        (["method.layers=3.5"], "method.layers cannot be used", ""),
        (["method.slack=-1"], "method.slack cannot be used", ""),
        (["corpus.dynamic_multiplier=0"], "corpus.dynamic_multiplier cannot be used", ""),
        (["corpus.dynamic_multiplier=many"], "corpus.dynamic_multiplier cannot be used", ""),
        (["corpus.auto.tolerance=1"], "corpus.auto.tolerance cannot be used", ""),
        (["corpus.auto.steps=[2,-1]"], "corpus.auto.steps cannot be used", ""),
        (["corpus.auto.step=[2]"], "no setting 'corpus.auto.step'", "did you mean 'steps'"),
        (["corpus.dynamic_multiplier=nan"], "corpus.dynamic_multiplier cannot be used", ""),
        (["method.preservation_weight=inf"], "method.preservation_weight cannot be used", ""),
        (["method.ridge=much"], "method.ridge cannot be used", ""),
        (["method.ridge=-1"], "method.ridge cannot be used", ""),
        (["method.ridge=1e300"], "method.ridge cannot be used", ""),
        (["method.slack=1e300"], "method.slack cannot be used", ""),
        (["method.value.learning_rate=1e38"], "method.value.learning_rate cannot be used", ""),
        (["corpus.dynamic_multiplier=1e6"], "corpus.dynamic_multiplier cannot be used", ""),
        (["method.layers=[1"], "cannot be composed", ""),
        (["model.dtype=int8"], "model.dtype cannot be used", ""),
        (["model.path=${nowhere}"], "cannot be composed", ""),
        (["model=/nowhere.yaml"], "no model '/nowhere.yaml'", ""),
    ],
)
def test_what_cannot_be_understood_is_said(arguments, message, remedy):
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as caught:
        compose(arguments)
    assert remedy in caught.value.details.get("remedy", "")


def test_a_yaml_with_an_unknown_key_is_refused(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("name: mine\npath: x\ndefaults: {corpus: embedded, dataset: embedded}\nediting: {layer: [1]}\n")
    with pytest.raises(InputError):
        compose([f"model={own}"])


def test_an_old_name_is_refused_and_points_to_the_new_one(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("name: mine\nsuite: counterfact\npath: records.json\n")
    for arguments in (["dataset.suite=zsre"], [f"dataset={own}"]):
        with pytest.raises(InputError, match=r"'dataset.suite' has a new name") as refused:
            compose(arguments)
        assert refused.value.details["remedy"] == "use 'dataset.format'"


def test_an_earlier_run_with_an_old_name_is_read():
    content = compose().model_dump(mode="json")
    content["dataset"]["suite"] = content["dataset"].pop("format")
    assert compose_again(content, ["runtime.threads=1"]).dataset == compose().dataset
    assert "suite" in content["dataset"], "the content of the earlier run was changed"


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "\x00"])
def test_a_yaml_that_is_none_is_refused(tmp_path, text):
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(InputError):
        compose([f"model={own}"])


def test_every_choice_says_what_it_is_and_every_setting_what_it_means():
    for group in GROUPS:
        assert choices(group)
        assert all(choices(group).values())
    for key, meaning in describe_settings():
        assert meaning or key in {"corpus.source", "model.name"}, key


@pytest.mark.parametrize("method", sorted(choices("method")))
@pytest.mark.parametrize("model", sorted(set(choices("model")) - {"local"}))
def test_every_model_says_what_every_method_needs(model, method):
    given = {"embedded": [], "cf-gpt2": ["model.path=m", "corpus.path=c.jsonl"]}.get(model, ["corpus=embedded"])
    dataset = [] if model == "embedded" else ["dataset.path=d.json"]
    settings = compose([f"model={model}", f"method={method}", *given, *dataset])
    assert settings.method.layers == sorted(settings.method.layers)
    if method.endswith("rome"):
        assert len(settings.method.layers) == 1
        assert settings.method.batch_size == 1
        assert settings.method.value.site == "mlp"


def test_published_settings():
    """MEMIT on GPT-2 XL, Meng et al. 2022b; EMMET on GPT-J, Gupta et al. 2024."""
    xl = compose(["model=gpt2-xl", "corpus=embedded", "dataset.path=d.json"]).method
    assert (xl.layers, xl.preservation_weight) == ([13, 14, 15, 16, 17], 20000)
    assert (xl.value.steps, xl.value.learning_rate, xl.value.clamp) == (20, 0.5, 0.75)
    j = compose(["model=gpt-j-6b", "method=emmet", "corpus=embedded", "dataset.path=d.json"]).method
    assert (j.layers, j.preservation_weight, j.slack) == ([5], 100000, 0.1)


@pytest.mark.parametrize(
    ("model", "method", "layers", "rank"),
    [
        ("gpt2-xl", "memit-f", [13, 14, 15, 16, 17], 1852),
        ("gpt-j-6b", "emmet-f", [3, 4, 5, 6, 7, 8], 5911),
        ("llama-3-8b", "memit-f", [4, 5, 6, 7, 8], 5958),
        ("llama-3-8b", "emmet-f", [4, 5, 6, 7, 8], 9104),
        ("llama-3-8b", "alphaedit-f", [4, 5, 6, 7, 8], 1472),
    ],
)
def test_published_settings_of_the_low_rank_family(model, method, layers, rank):
    """FastEdit, table 3 and section B: the ranks for CounterFact, lambda 15,000, 40,000 samples; all layers."""
    found = compose([f"model={model}", f"method={method}", "corpus=embedded", "dataset.path=d.json"]).method
    assert (found.layers, found.low_rank.rank, found.low_rank.n_samples) == (layers, rank, 40_000)
    assert found.preservation_weight == 15000 or method == "alphaedit-f"
    assert found.reads == "samples"


def test_published_settings_of_alphaedit():
    found = compose(["model=llama-3-8b", "method=alphaedit", "corpus=embedded", "dataset.path=d.json"]).method
    assert (found.preservation, found.null_space.threshold, found.null_space.l2) == ("null_space", 0.02, 10)
    assert (found.slack, found.reads) == (1, "corpus")


def test_a_fault_inside_a_setting_names_the_field():
    for samples, field in (("[{start: The}]", "length"), ("[{start: The, length: 3, lenght: 4}]", "lenght")):
        with pytest.raises(InputError) as caught:
            compose([f"method.context_samples={samples}"])
        assert "method.context_samples" in caught.value.what
        assert caught.value.details["expected"].startswith(f"{field}: ")


def test_a_corpus_is_only_asked_for_if_it_is_read():
    given = ["model=local", "model.path=here", "dataset.path=facts.json", "method=ft", "method.layers=[0]"]
    assert not compose([*given, "drift.edits=0"]).reads_corpus
    with pytest.raises(InputError, match="corpus.path must be given"):
        compose(given)
    with pytest.raises(InputError, match="a measure of drift"):
        compose([*given, "drift.edits=0", "corpus.path=text.jsonl"])
