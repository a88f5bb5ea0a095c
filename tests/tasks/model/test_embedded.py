"""The embedded model: it knows its world, and its training can be interrupted."""

from __future__ import annotations

import json
import random
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factsmith.tasks.model.embedded import training
from factsmith.tasks.model.embedded.training import Recipe, pretrain, recall
from factsmith.tasks.model.embedded.world import RELATIONS, World
from tests.conftest import load

ASSETS = Path(str(resources.files("factsmith.tasks.model.embedded") / "assets"))


def test_the_world_repeats_and_follows_its_seed():
    assert World().people == World().people
    assert World().records() == World().records()
    assert World(seed=21).people != World().people
    assert World().document(random.Random(5)) == World().document(random.Random(5))


def test_a_persons_last_word_is_its_own():
    last = [person.name.split()[-1] for person in World().people]
    assert len(set(last)) == len(last)


def test_records_are_counterfacts():
    world = World()
    names = {person.name: person for person in world.people}
    relations = {relation.relation_id: index for index, relation in enumerate(RELATIONS)}
    for record in world.records():
        rewrite = record["requested_rewrite"]
        index = relations[rewrite["relation_id"]]
        objects = RELATIONS[index].objects
        true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        assert objects[names[rewrite["subject"]].objects[index]] == true
        assert new in objects
        assert new != true
        assert len(record["paraphrase_prompts"]) == 2
        assert len(record["neighborhood_prompts"]) == 10
        for prompt in record["neighborhood_prompts"]:
            (subject,) = (name for name in names if name in prompt)
            assert subject != rewrite["subject"]
            assert objects[names[subject].objects[index]] == true


def test_the_halves_part_the_records_and_hold_every_relation():
    world = World()
    tune, test = world.records("tune"), world.records("test")
    assert {one["case_id"] for one in tune}.isdisjoint(one["case_id"] for one in test)
    assert len(tune) == len(test) == 320
    for half in (tune, test):
        counts = Counter(one["requested_rewrite"]["relation_id"] for one in half)
        assert set(counts.values()) == {64}


def test_the_shipped_model_is_small_and_of_this_world():
    size = sum(path.stat().st_size for path in ASSETS.iterdir())
    assert size <= 5_000_000
    training = json.loads((ASSETS / "training.json").read_text())
    assert training["world"] == World().fingerprint
    assert training["recipe"] == vars(Recipe())


@pytest.mark.parametrize(("step", "least"), [(8, 0.97), pytest.param(1, 0.99, marks=pytest.mark.slow)])
def test_the_shipped_model_recalls_its_facts_on_every_template(step, least):
    world = World()
    vars(world)["people"] = world.people[::step]
    shares = recall(load(ASSETS), world)
    assert len(shares) == 25
    assert min(shares.values()) >= least, min(shares, key=shares.get)


SMALL = Recipe(width=32, blocks=2, heads=2, key_width=48, context=48, vocabulary=400, steps=12, windows=2, warmup=3)


@pytest.fixture(scope="module", autouse=True)
def _few_documents():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_TOKENIZER_DOCUMENTS", 300)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    pretrain(out, world=World(people_count=60), recipe=SMALL, checkpoint_every=5)
    return out


def test_training_writes_a_model_that_loads(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training.json",
    ]  # fmt: skip
    decoder = load(trained)
    assert decoder.key_width == 48
    assert "token_type_ids" not in decoder.tokenizer("a")


@pytest.mark.parametrize("at", [1, 5, 7, 11])
def test_training_continues_where_it_was_stopped(trained, tmp_path, at):
    steps = 0

    def stop(more: int) -> None:
        nonlocal steps
        steps += more
        if steps == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, world=World(people_count=60), recipe=SMALL, checkpoint_every=5, advance=stop)
    assert not (tmp_path / "model.safetensors").exists()
    rest: list[int] = []
    pretrain(tmp_path, world=World(people_count=60), recipe=SMALL, checkpoint_every=5, advance=rest.append)
    assert sum(rest) == SMALL.steps  # what an earlier call has done counts as done
    one, other = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_run_is_not_continued(trained, tmp_path):
    def stop(_: int) -> None:
        if (tmp_path / "checkpoint.safetensors").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, world=World(people_count=60, seed=3), recipe=SMALL, checkpoint_every=5, advance=stop)
    pretrain(tmp_path, world=World(people_count=60), recipe=SMALL, checkpoint_every=5)
    one, other = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
