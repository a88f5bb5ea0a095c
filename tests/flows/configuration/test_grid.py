"""Arguments and experiments, and their cells."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import EXPERIMENT, choices
from factsmith.flows.configuration.composition import compose, compose_cell
from factsmith.flows.configuration.grid import read_grid


def test_cells_are_the_product_of_the_axes_the_last_one_fastest():
    grid = read_grid(["method=memit,emmet", "dataset.batches=2", "method.batch_size=1,16"])
    assert [cell.place for cell in grid.cells] == [
        {"method": "memit", "method.batch_size": "1"},
        {"method": "memit", "method.batch_size": "16"},
        {"method": "emmet", "method.batch_size": "1"},
        {"method": "emmet", "method.batch_size": "16"},
    ]
    assert grid.cells[3].arguments == ("dataset.batches=2", "method=emmet", "method.batch_size=16")
    assert compose(grid.cells[3].arguments).method.batch_size == 16


def test_commas_in_brackets_braces_and_quotes_part_nothing():
    grid = read_grid(["method.layers=[0,1],[2]", "method.value={steps: 3, clamp: 1},{steps: 4}", "model.name='a,b',c"])
    assert [next(iter(axis.values())) for axis in grid.axes] == [
        ("[0,1]", "[2]"),
        ("{steps: 3, clamp: 1}", "{steps: 4}"),
        ("'a,b'", "c"),
    ]


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "settings: {model: embedded, method.layers: [0]}\n"
        "axes:\n"
        "  - {method: [memit, emmet]}\n"
        "  - {method.batch_size: [1, 16, 64], dataset.batches: [10, 10, 4]}\n"
    )
    return f"experiment={path}"


def test_values_of_one_axis_go_together(experiment):
    grid = read_grid([experiment])
    assert grid.name == "mine"
    assert len(grid.cells) == 6
    assert {(cell.place["method.batch_size"], cell.place["dataset.batches"]) for cell in grid.cells} == {
        ("1", "10"), ("16", "10"), ("64", "4"),
    }  # fmt: skip
    assert compose(grid.cells[0].arguments).method.layers == [0]


def test_arguments_change_an_experiment(experiment):
    replaced = read_grid([experiment, "method=rome,r-rome,memit", "method.layers=[1]", "corpus.seed=1,2"])
    assert [list(axis) for axis in replaced.axes] == [
        ["method"], ["method.batch_size", "dataset.batches"], ["corpus.seed"],
    ]  # fmt: skip
    assert replaced.axes[0]["method"] == ("rome", "r-rome", "memit")
    assert replaced.settings["method.layers"] == "[1]"
    fixed = read_grid([experiment, "method=memit"])
    assert [list(axis) for axis in fixed.axes] == [["method.batch_size", "dataset.batches"]]
    assert fixed.settings["method"] == "memit"
    narrowed = read_grid([experiment, "method.batch_size=64,1"])
    assert narrowed.axes[1] == {"method.batch_size": ("1", "64"), "dataset.batches": ("10", "4")}
    single = read_grid([experiment, "method.batch_size=16"])
    assert (single.settings["method.batch_size"], single.settings["dataset.batches"]) == ("16", "10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=memit"], "Nothing varies"),
        ([], "Nothing varies"),
        (["memit,emmet"], "'memit,emmet' is not understood"),
        (["experiment=fastmemit-embeded"], "did you mean 'fastmemit-embedded'"),
        (["experiment=a,b"], "runs one experiment"),
        (["corpus.seed=" + ",".join(map(str, range(200))), "dataset.seed=" + ",".join(map(str, range(200)))], "40,000"),
    ],
)
def test_what_is_no_grid_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        read_grid(arguments)


def test_a_value_that_an_experiment_does_not_pair_is_refused(experiment):
    with pytest.raises(InputError, match=r"method\.batch_size=7 is not in the experiment"):
        read_grid([experiment, "method.batch_size=7"])


@pytest.mark.parametrize(
    "content",
    [
        "axis: []", "[1, 2]", "axes: 3", "axes: [3]", "axes: [{a: 1}]", "axes: [{a: []}]",
        "axes: [{a: [1], b: [1, 2]}]", "a: [",
    ],
)  # fmt: skip
def test_a_faulty_experiment_is_refused(tmp_path, content):
    path = tmp_path / "faulty.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="faulty"):
        read_grid([f"experiment={path}"])


@pytest.mark.parametrize(
    "name",
    [
        name if name.endswith(("-embedded", "-smollm2")) else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(choices(EXPERIMENT))
    ],
)
def test_every_experiment_that_ships_composes(name):
    grid = read_grid([f"experiment={name}"])
    local = ["corpus.path", "dataset.path"]
    paths = {"embedded": [], "cf-gpt2": ["model.path", *local], "smollm2-135m": local}
    needed = [f"{path}=/there" for path in paths.get(grid.settings["model"], ["dataset.path"])]
    unread = []
    for cell in grid.cells:
        settings, names = compose_cell([*needed, *cell.arguments])
        assert not set(names) & set(grid.varied)
        unread.append(set(names))
        assert str(settings.method.batch_size) == cell.place.get("method.batch_size", str(settings.method.batch_size))
    assert not set.intersection(*unread)
    assert choices(EXPERIMENT)[name]
