"""Files of second moments: read, checked, written, and used by runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.tasks.covariance.second_moments import (
    Origin,
    SecondMoments,
    read_second_moments,
    write_second_moments,
)
from factsmith.tasks.covariance.stage import load_moments
from factsmith.tasks.model.checkpoint import open_checkpoint
from factsmith.tasks.planning.statistics import projection_names
from tests.conftest import plain_blocks, plain_projection
from tests.runs import artifacts, states

WIDTH = 6


def keys_of(width: int, count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(keys: torch.Tensor) -> SecondMoments:
    return SecondMoments(keys.T @ keys / len(keys), len(keys), keys.mean(0))


def loaded_elsewhere(path: Path, sample_size: int) -> np.ndarray:
    """C0 as the other tools get it: their cache of ``sample_size`` documents, sum divided by count, in float32.

    ``np.load`` without pickle; every argument must be in the file with the value that was asked for; then the entries
    whose names begin with ``mom2.`` make up the statistic.
    """
    found = dict(np.load(path).items())
    assert found["sample_size"] == sample_size
    state = {name.removeprefix("mom2."): value for name, value in found.items() if name.startswith("mom2.")}
    total, count = torch.from_numpy(state["mom2"]), int(state["count"])
    assert total.dtype == torch.float32
    return (total / count).float().numpy()


@given(
    width=st.integers(1, 9),
    count=st.integers(1, 10**6),
    seed=st.integers(0, 99),
    scale=st.floats(1e-6, 1e6),
    mean=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_what_is_written_is_read_again_to_float32(tmp_path_factory, width, count, seed, scale, mean):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    given = moments_of(keys_of(width, 20, seed, scale))
    given = SecondMoments(given.covariance, count, given.mean if mean else None)
    write_second_moments(path, given, 100)
    found = read_second_moments(path, width)
    assert found.count == count
    # Rounding to float32 moves an entry by 2^-24 of its size. Multiplying and dividing by the count adds less.
    torch.testing.assert_close(found.covariance, given.covariance, rtol=2**-23, atol=0)
    assert (found.mean is None) == (not mean)
    if found.mean is not None:
        torch.testing.assert_close(found.mean, given.mean, rtol=2**-23, atol=0)
    np.testing.assert_allclose(loaded_elsewhere(path, 100), given.covariance.numpy(), rtol=2**-22)
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]


def test_a_file_of_their_code_is_read(tmp_path):
    """Sums of float32 products in an order that leaves them not quite symmetric, as on a GPU."""
    keys = keys_of(WIDTH, 5000, scale=3)
    total = (keys.T @ keys).float().numpy()
    total[0, 1] *= 1 + 1e-5
    content = {"mom2.constructor": "util.runningstats.SecondMoment()", "mom2.count": 5000, "mom2.mom2": total}
    path = tmp_path / "gpt2-xl" / "wikipedia_stats" / "transformer.h.13.mlp.c_proj_float32_mom2_100000.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **content, sample_size=100_000)
    found = read_second_moments(path, WIDTH)
    torch.testing.assert_close(found.covariance, keys.T @ keys / 5000, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.covariance, found.covariance.T)
    assert Origin.of(path) == Origin("gpt2-xl", "wikipedia", "transformer.h.13.mlp.c_proj", 100_000)
    assert Origin.of(path).layer == 13
    assert Origin.of(path).path == path.relative_to(tmp_path)


TOTAL = (keys_of(WIDTH, 50).T @ keys_of(WIDTH, 50)).float().numpy()
LOPSIDED, ENDLESS, TOO_LARGE = TOTAL.copy(), TOTAL.copy(), TOTAL.copy()
LOPSIDED[0, 1] += 5
ENDLESS[2, 3] = np.nan
TOO_LARGE[0, 1] = TOO_LARGE[1, 0] = 1e3


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mom2.mom2": TOTAL}, "mom2.count"),
        ({"mom2.count": 3}, "only mom2.count"),
        ({"mom2.mom2": TOTAL, "mom2.count": 0}, "above 0"),
        ({"mom2.mom2": TOTAL, "mom2.count": 2.5}, "whole number"),
        ({"mom2.mom2": TOTAL, "mom2.count": [1, 2]}, "whole number"),
        ({"mom2.mom2": TOTAL[:5, :5], "mom2.count": 3}, "5x5"),
        ({"mom2.mom2": TOTAL[0], "mom2.count": 3}, "another model"),
        ({"mom2.mom2": TOTAL.astype(int), "mom2.count": 3}, "int64"),
        ({"mom2.mom2": LOPSIDED, "mom2.count": 3}, "not symmetric"),
        ({"mom2.mom2": ENDLESS, "mom2.count": 3}, "NaN"),
        ({"mom2.mom2": TOO_LARGE, "mom2.count": 3}, "sums of squares allow"),
        ({"mom2.mom2": -TOTAL, "mom2.count": 3}, "negative"),
        ({"mom2.mom2": 0 * TOTAL, "mom2.count": 3}, "all 0"),
        ({"mom2.mom2": np.array([Evil()], dtype=object), "mom2.count": 3}, "another model"),
        ({"mom2.mom2": TOTAL, "mom2.count": np.array(Evil(), dtype=object)}, "cannot be imported"),
        ({"mom2.mom2": TOTAL, "mom2.count": 1e300}, "whole number"),
        ({"mom2.mom2": TOTAL, "mom2.count": 50, "mean.count": 7, "mean.mean": 0 * TOTAL[0]}, "mean.count=7"),
        ({"mom2.mom2": TOTAL, "mom2.count": 50, "mean.count": 50, "mean.mean": TOTAL[0]}, "sums of squares allow"),
        ({"mom2.mom2": np.full((WIDTH, WIDTH), Evil(), dtype=object), "mom2.count": 3}, "data type object"),
    ],
)
def test_what_is_no_sum_of_squares_is_refused(tmp_path, content, said):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(InputError, match=said):
        read_second_moments(tmp_path / "a.npz", WIDTH)


def test_numbers_in_the_other_byte_order_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"mom2.mom2": TOTAL.astype(">f4"), "mom2.count": np.array(50, ">i8")})
    found = read_second_moments(tmp_path / "a.npz", WIDTH)
    torch.testing.assert_close(found.covariance, torch.from_numpy(TOTAL).double() / 50)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_file_is_read_as_it_was_or_refused(tmp_path, compression):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in (("mom2.mom2", TOTAL), ("mom2.count", np.array(50))):
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, value)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ random.integers(1, 256)]) + whole[place + 1 :])
        try:
            assert torch.equal(
                read_second_moments(path, WIDTH).covariance, torch.from_numpy((TOTAL + TOTAL.T) / 2).double() / 50
            )
        except InputError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("shape", ["(3000000000,)", "((((", "'''"])
def test_a_header_that_lies_about_the_count_is_refused(tmp_path, shape):
    """A count as large as memory would allow, whose zeros a zip file holds in a thousandth of their size."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        with file.open("mom2.mom2.npy", "w") as member:
            np.lib.format.write_array(member, TOTAL)
        file.writestr("mom2.count.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match="cannot be imported"):
        read_second_moments(tmp_path / "a.npz", WIDTH)


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all", b"\x80\x04K\x01."])
def test_what_is_no_npz_is_refused(tmp_path, data):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="cannot be imported"):
        read_second_moments(tmp_path / "a.npz", WIDTH)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:  # numpy's reader raises an error of its tokenizer.
        archive.writestr("mom2.mom2.npy", b"\x93NUMPY\x01\x00\x10\x00{'shape': (4L, (\n")
    with pytest.raises(InputError, match="cannot be imported"):
        read_second_moments(tmp_path / "c.npz", WIDTH)
    np.save(tmp_path / "b.npy", TOTAL)
    with pytest.raises(InputError, match="another format"):
        read_second_moments(tmp_path / "b.npy", WIDTH)


def test_modules_have_the_names_that_transformers_gives_them(model_folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    by_name = dict(model.named_modules())
    names = projection_names(open_checkpoint(model_folder))
    assert [by_name[name] for name in names] == [plain_projection(block) for block in plain_blocks(model)]


# -------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def prepared(factsmith, plain_flows, arguments) -> str:
    """The run of a ``precompute`` of two layers of the tiny model."""
    return json.loads(factsmith("precompute", "--json", *arguments()).out)["mlflow_run_id"]


@pytest.fixture
def exported(factsmith, prepared, tmp_path) -> list[Path]:
    """Its C0 as files."""
    result = factsmith("export-stats", prepared, "--out", tmp_path / "stats", "--model-name", "tiny", "--json")
    assert result.code == 0, result.err
    return [Path(one["file"]) for one in json.loads(result.out)]


def of_text(*arguments: str) -> list[str]:
    """The arguments of a tiny run, without those that only a run with text reads."""
    unread = ("corpus=", "corpus.block_length", "corpus.dynamic_multiplier")
    return [one for one in arguments if not one.startswith(unread)]


def test_c0_goes_out_and_comes_back_and_a_run_uses_it(
    factsmith, exported, arguments, store, tmp_path, monkeypatch, gpt2_folder
):
    before = {one.key["layer"]: one for one in artifacts(store, "covariance")}
    assert [path.relative_to(tmp_path).as_posix() for path in exported] == [
        f"stats/tiny/wikipedia_stats/transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz" for layer in (0, 1)
    ]
    for layer, path in enumerate(exported):
        c0 = load_moments(before[layer], torch.device("cpu"))["covariance"]
        np.testing.assert_allclose(loaded_elsewhere(path, 100_000), c0.numpy(), rtol=1e-6, atol=0)

    model = ["model=local", f"model.path={gpt2_folder}"]
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    there = Store(tmp_path / "there")
    for new in (True, False):  # the second time, nothing is imported again
        found = json.loads(factsmith("import-stats", *map(str, exported), *model, "--name", "ours", "--json").out)
        assert [(one["layer"], one["name"], one["new"]) for one in found] == [(0, "ours", new), (1, "ours", new)]
    for one in artifacts(there, "covariance"):
        mine = load_moments(before[one.key["layer"]], torch.device("cpu"))
        found = load_moments(one, torch.device("cpu"))
        for name in ("covariance", "mean"):
            torch.testing.assert_close(found[name], mine[name], rtol=2**-23, atol=0)
        assert one.summary["tokens"] == before[one.key["layer"]].summary["tokens"]

    report = precompute(compose([*of_text(*arguments("method=memit-f")), "corpus=imported"]))
    assert states(report) == {"model": "built", "covariance": "cached", "factor": "built"}
    assert report.dynamic_multiplier == 20
    result = factsmith("run", "--json", *of_text(*arguments("dataset.batches=1")), "corpus=imported")
    assert result.code == 0, result.err
    stages = {stage["name"]: stage["state"] for stage in json.loads(result.out)["stages"]}
    assert stages.keys() == {"model", "covariance", "factor", "contexts", "values", "edit", "evaluation"}
    # With text beside C0, drift is measured too.
    result = factsmith("run", "--json", *arguments("dataset.batches=1", "corpus.statistics=ours"))
    assert "corpus.dynamic_multiplier would have no effect" in result.err
    given = [one for one in arguments("dataset.batches=1") if "dynamic_multiplier" not in one]
    result = factsmith("run", "--json", *given, "corpus.statistics=ours")
    assert json.loads(result.out)["drift"]


@pytest.mark.slow
def test_a_sequence_with_imported_c0_has_no_perplexity(factsmith, exported, arguments, gpt2_folder, caplog):
    assert factsmith("import-stats", *map(str, exported), "model=local", f"model.path={gpt2_folder}").code == 0
    given = [*of_text(*arguments("method.batch_size=1")), "corpus=imported", "method.sequence.history=full"]
    result = factsmith("run", "--json", *given)
    assert result.code == 0, result.err
    curves = json.loads(result.out)["trajectory"]
    assert [name for name in curves if "S" in name]
    assert not [name for name in curves if "perplexity" in name]
    assert "perplexity is not measured" in caplog.text


OWN = {
    "memit": [],
    "emmet": [],
    "rome": ["method.layers=[1]"],
    "r-rome": ["method.layers=[1]"],
    "pmet": [],
    "alphaedit": ["method.null_space.threshold=0.1"],
    "rect": [],
    "prune": [],
    "memit-f": [],
    "emmet-f": [],
    "alphaedit-f": [],
}
"""Methods that use C0 or a low-rank model of it, with settings that suit the tiny model."""


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN)
def test_every_method_edits_with_imported_c0_as_with_its_own(
    factsmith, exported, arguments, gpt2_folder, method, store
):
    assert factsmith("import-stats", *map(str, exported), "model=local", f"model.path={gpt2_folder}").code == 0
    batch = [] if method not in ("rome", "r-rome") else ["method.batch_size=1"]
    given = arguments(f"method={method}", "dataset.batches=1", *batch, *OWN[method])
    if method.endswith("-f"):  # as many samples as C0 covers, so that both make the same model of them
        given.append("method.low_rank.n_samples=800")
    mine = json.loads(factsmith("run", "--json", *given).out)["metrics"]["after"]
    unread = [one for one in of_text(*given) if "n_samples" not in one]
    found = json.loads(factsmith("run", "--json", *unread, "corpus=imported").out)["metrics"]["after"]
    assert found == pytest.approx(mine, abs=0.2)  # percent; C0 was rounded to float32


def test_what_statistics_cannot_serve_is_refused(factsmith, exported, arguments, gpt2_folder, store, tmp_path):
    model = ["model=local", f"model.path={gpt2_folder}"]
    given = [*of_text(*arguments()), "corpus=imported"]

    def refused(*arguments: object, said: str) -> None:
        result = factsmith(*map(str, arguments))
        assert (result.code, result.out) == (2, ""), result
        assert said in result.err, result.err

    refused("precompute", *given, said="No statistics have been imported")
    kept = load_without_mean(exported[0], tmp_path)
    assert factsmith("import-stats", str(kept), *model).code == 0
    refused("precompute", *given, said="lack layer 1")
    refused("import-stats", exported[0], *model, said="imported from another file")
    thin = [*of_text(*arguments("method=memit-f", "method.layers=[0]")), "corpus=imported"]
    refused("precompute", *thin, said="method.low_rank.centred=false")
    result = factsmith("precompute", *thin, "method.low_rank.centred=false")
    assert result.code == 0, result.err
    refused("precompute", *thin, "method.low_rank.centred=false", "method.low_rank.n_samples=9", said="no effect")
    for setting in (
        "corpus.tokens=9",
        "corpus.keep_keys=true",
        "drift.edits=1",
        "corpus.seed=3",
        "corpus.block_length=8",
    ):
        refused("run", *given, setting, said="would have no effect")
    refused(
        "run",
        *given,
        "corpus.statistics=theirs",
        said="wikipedia",
    )
    assert factsmith("import-stats", str(exported[1]), *model, "--name", "second").code == 0
    refused("precompute", *given, said="Several statistics")
    refused("import-stats", exported[0], said="give model=")
    refused("import-stats", exported[0], "model=embedded", said="another model")
    refused("import-stats", exported[0], *model, "--layer", 9, said="has no layer 9")
    refused("import-stats", exported[0], exported[0], *model, said="Two files are of layer 0")
    refused("import-stats", tmp_path / "x_float32_mom2_1.npz", *model, said="The layer of")
    refused("import-stats", tmp_path / "nothing.npz", *model, "--layer", 0, said="does not exist")
    refused("import-stats", *model, said="no file to import")
    refused("export-stats", "latest", "--out", exported[0].parents[2], "--model-name", "a/b", said="without slashes")
    factor = artifacts(store, "factor")[0]
    refused("export-stats", factor.address, *model, "--out", tmp_path / "o", said="is no C0")
    c0 = next(one for one in artifacts(store, "covariance") if "imported" not in one.summary)
    refused("export-stats", c0.address, "model=embedded", "--out", tmp_path / "o", said="of another model")
    refused(
        "export-stats", c0.manifest.kind + "/" + c0.manifest.series, *model, "--out", exported[0].parents[2],
        "--model-name", "tiny", said="exists already",
    )  # fmt: skip
    assert not (tmp_path / "o").exists()


def load_without_mean(path: Path, folder: Path) -> Path:
    """A file without the mean key, as the other tools write it."""
    content = {name: value for name, value in np.load(path).items() if not name.startswith("mean.")}
    copy = folder / "theirs" / path.relative_to(path.parents[2])
    copy.parent.mkdir(parents=True)
    np.savez(copy, **content)
    return copy
