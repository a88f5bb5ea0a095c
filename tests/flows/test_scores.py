"""What editing comes to: on the embedded model's untouched half, and on real CounterFact facts."""

from __future__ import annotations

import pytest
import torch

from factsmith.flows.configuration import compose
from factsmith.flows.run import run


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory, prefect_server):
    """One home for all, since they share everything before the facts; and all threads, since they compute."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTSMITH_HOME", str(tmp_path_factory.mktemp("scores")))
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", ["memit", "emmet"])
@pytest.mark.parametrize(("size", "batches", "least"), [(16, 10, 92), (64, 4, 87)])
def test_the_embedded_model(method, size, batches, least):
    words = [f"method={method}", f"method.batch_size={size}", f"dataset.batches={batches}"]
    report = run(compose(words))
    assert report.metrics["before"]["ES"] <= 1
    assert report.metrics["before"]["NS"] >= 99
    assert report.metrics["after"]["S"] >= least, report.metrics


@pytest.mark.parametrize("method", ["memit", "emmet"])
def test_real_facts(shared, method):
    data, model = shared / "data", shared / "models" / "cf-gpt2"
    words = [
        "model=cf-gpt2", f"model.path={model}", "corpus=local", f"corpus.path={data / 'wikipedia.jsonl'}",
        "dataset=counterfact", f"dataset.path={data / 'counterfact.json'}",
        f"dataset.cases={model / 'known_cases.json'}", f"method={method}", "method.batch_size=16", "dataset.batches=6",
    ]  # fmt: skip
    assert run(compose(words)).metrics["after"]["S"] >= 94


def test_fewer_tokens_than_a_key_is_wide_make_poor_edits():
    """FastMEMIT's finding: at d_m = 1 edits fail, from 3 on they do not."""
    scores = {}
    for multiplier in (1, 3, 10):
        words = [f"corpus.dynamic_multiplier={multiplier}", "method.ridge=auto", "dataset.batches=4"]
        scores[multiplier] = run(compose(words)).metrics["after"]["S"]
    assert scores[1] < scores[10] - 10
    assert scores[3] > 0.93 * scores[10]
