"""Settings that a run would not read are refused, wherever they are given."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import UNUSED_BY_LOCATE, compose, compose_again
from factsmith.flows.configuration.keys import describe_settings
from factsmith.flows.configuration.parameters import deployment_parameters
from factsmith.flows.configuration.unread import unread
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.tasks.pipeline.settings import ReadIf, Section
from factsmith.tasks.planning.settings import Settings

UNREAD = [
    (["dataset.path=facts.json"], "dataset.path", "dataset=facts"),
    (["corpus.path=text.txt"], "corpus.path", "corpus=local"),
    (["corpus=wikipedia", "corpus.path=text.txt"], "corpus.path", "corpus=local"),
    (["corpus.subset=en"], "corpus.subset", "corpus=wikipedia"),
    (["corpus.sampling=first"], "corpus.sampling", "corpus=local"),
    (["corpus.topics=4"], "corpus.topics", "corpus.sampling=stratified"),
    (["corpus.tokens=99", "corpus.dynamic_multiplier=3"], "corpus.dynamic_multiplier", "corpus.tokens=null"),
    (["corpus.auto.tolerance=2"], "corpus.auto.tolerance", "leave it out"),
    (["method=memit-f", "corpus.dynamic_multiplier=3"], "corpus.dynamic_multiplier", "method=memit"),
    (["method=memit-f", "corpus.dynamic_multiplier=auto"], "corpus.dynamic_multiplier", "method=memit"),
    (["method=memit", "method.low_rank.rank=5"], "method.low_rank.rank", "method=memit-f"),
    (["method=memit-f", "method.low_rank.rank=5", "method.low_rank.energy=0.5"], "method.low_rank.energy", "rank=null"),
    (["method=memit", "method.null_space.l2=5"], "method.null_space.l2", "method=alphaedit"),
    (["method=alphaedit", "method.preservation_weight=5"], "method.preservation_weight", "method=memit"),
    (["method=alphaedit-f", "method.null_space.threshold=5"], "method.null_space.threshold", "method=alphaedit"),
    (["method=memit-f", "method.ridge=auto"], "method.ridge", "method=memit"),
    (["method=memit", "method.slack_of_one=0"], "method.slack_of_one", "method=emmet"),
    (["method.layers=[1]", "method.spread=square_root"], "method.spread", "leave it out"),
    (["method.sequence.tau=3"], "method.sequence.tau", "method.sequence.history=compressed"),
    (["method.sequence.history=full", "method.sequence.energy=0.5"], "method.sequence.energy", "compressed"),
    (["method.contexts=contexts.json", "method.context_seed=5"], "method.context_seed", "method.contexts=null"),
    (["method.preservation=identity", "corpus.tokens=99"], "corpus.tokens", "leave it out"),
    (["runtime.gpu_memory_mb=99"], "runtime.gpu_memory_mb", "runtime.device_map=auto"),
    (["trace.samples=3"], "trace.samples", "leave it out"),
    (["corpus.keep_keys=true", "runtime.checkpoint_seconds=9"], "runtime.checkpoint_seconds", "keep_keys=false"),
]


@pytest.mark.parametrize("argument", ["method=rome", "method.slack=2", "corpus=wikipedia", "corpus.block_length=64"])
def test_locate_reads_neither_method_nor_corpus(argument):
    with pytest.raises(InputError, match="would have no effect"):
        compose([argument], stand_ins=UNUSED_BY_LOCATE)
    compose(["trace.samples=3", "dataset.limit=9"], stand_ins=UNUSED_BY_LOCATE)


@pytest.mark.parametrize(("arguments", "name", "remedy"), UNREAD, ids=[" ".join(row[0]) for row in UNREAD])
def test_a_setting_that_is_not_read_is_refused(arguments, name, remedy):
    with pytest.raises(InputError) as caught:
        compose(arguments)
    assert str(caught.value).startswith(f"{name} would have no effect.")
    assert remedy in caught.value.details["remedy"]
    with pytest.raises(InputError, match="would have no effect"):
        deployment_parameters(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dataset.path=null", "corpus.path=null"],  # what it is without them
        ["method=memit", "method.slack_of_one=null"],
        ["method=emmet", "method.slack_of_one=0.5"],
        ["method.sequence.history=none", "corpus.tokens=99", "method=memit-f"],  # held-out text lies beyond
        ["corpus.sampling=stratified", "corpus.topics=3"],
        ["corpus.dynamic_multiplier=auto", "corpus.auto.steps=[2,4]"],
        ["method=alphaedit-f", "method.low_rank.energy=0.9", "method.null_space.l2=3"],
        ["runtime.checkpoint_seconds=9"],  # on a GPU, which keeps no keys unless it is told to
    ],
    ids=" ".join,
)
def test_a_setting_that_is_read_is_taken(arguments):
    compose(arguments)


def test_every_declaration_names_settings_that_exist():
    settings = compose()
    found = list(declarations(Settings))
    assert len(found) > 20
    for one in found:
        for alternative in one.alternatives:
            alternative.value_in(settings)
            assert bool(alternative.values) != bool(alternative.but)
    for name, _ in describe_settings():
        unread(name, settings)


def declarations(section):
    for field in section.model_fields.values():
        yield from (one for one in field.metadata if isinstance(one, ReadIf))
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from declarations(field.annotation)


def test_a_sweep_refuses_what_no_cell_reads():
    with pytest.raises(InputError, match=r"method\.low_rank\.energy would have no effect"):
        open_sweep(["method=memit,emmet", "method.low_rank.energy=0.5"])


def test_a_sweep_takes_a_common_setting_that_some_cells_read():
    sweep = open_sweep(["method=memit,memit-f", "method.low_rank.energy=0.5"])
    assert not sweep.refused


def test_a_cell_that_does_not_read_what_varies_is_refused():
    sweep = open_sweep(["method=memit,memit-f", "method.low_rank.energy=0.5,0.9"])
    assert sorted(sweep.refused) == [0, 1]
    assert "method.low_rank.energy would have no effect" in sweep.refused[0]


def test_a_sweep_refuses_to_vary_what_no_cell_reads():
    with pytest.raises(InputError, match=r"trace\.samples would have no effect"):
        open_sweep(["trace.samples=1,2"])


def test_scoring_again_refuses_what_it_does_not_read():
    content = compose().model_dump(mode="json")
    with pytest.raises(InputError, match=r"dataset\.path would have no effect"):
        compose_again(content, ["dataset.path=facts.json"])


def test_settings_of_a_group_may_be_given_together():
    assert compose(["method.value={steps: 7, clamp: 2}"]).method.value.steps == 7
    with pytest.raises(InputError, match=r"There is no setting 'method.value.stepps'"):
        compose(["method.value={stepps: 7}"])
    with pytest.raises(InputError, match="method.value is a group of settings") as caught:
        compose(["method.value=7"])
    assert "method.value.site=..." in caught.value.details["expected"]


@pytest.mark.parametrize(
    ("group", "content", "name"),
    [
        ("method", "{name: mine, preservation: full, slack: 1, low_rank: {rank: 5}}", r"method\.low_rank\.rank"),
        ("corpus", "{name: mine, source: embedded, path: text.txt}", r"corpus\.path"),
        ("dataset", "{name: mine, format: embedded, path: facts.json}", r"dataset\.path"),
    ],
)
def test_a_choice_of_the_users_is_read_too(tmp_path, group, content, name):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=f"{name} would have no effect"):
        compose([f"{group}={tmp_path / 'mine.yaml'}"])
