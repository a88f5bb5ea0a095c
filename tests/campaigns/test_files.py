"""Files whose bytes were changed at random are read as they are, or refused: no other error, and bounded memory."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from factsmith.artifacts.errors import FactsmithError
from factsmith.flows.configuration.composition import compose
from factsmith.tasks.covariance.second_moments import SecondMoments, read_second_moments, write_second_moments
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.deltas.checks import check_applies, check_modules
from factsmith.tasks.deltas.file import ABOUT, TENSORS, read_delta
from factsmith.tasks.deltas.stack import apply_stack
from factsmith.tasks.deltas.weights import checksums, state_of, weight_at
from factsmith.tasks.facts.selection import select_records
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.ledger.ledger import LEDGER, read_ledger
from factsmith.tasks.model.checkpoint import open_checkpoint
from factsmith.tasks.model.gguf import dequantise
from tests.campaigns.campaign import Campaign
from tests.campaigns.mutation import changed_bytes, changed_json, changed_safetensors
from tests.conftest import load
from tests.tasks.deltas.test_deltas import draw, made

_WIDTH = 40
"""d_k of the tiny models."""

_SECONDS = 60
_ADDRESSES = 4 << 30
"""Most bytes of addresses that reading a file may take on top of what the process has."""


class Kind(ABC):
    """A kind of file.

    Args:
        folder: an empty folder, for a good file.
    """

    name: str

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.prepare(request)

    @abstractmethod
    def prepare(self, request: pytest.FixtureRequest) -> None:
        """Write a good file to the folder."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Read the file in ``folder`` as a command does, and check that what was read is what it says."""

    def change(self, folder: Path, random: Random) -> None:
        """Change the file in ``folder``."""
        file = folder / self.name
        content = file.read_bytes()
        file.write_bytes(self.changed(content, random))

    def changed(self, content: bytes, random: Random) -> bytes:
        """The changed content: bytes, or values of its JSON."""
        if random.random() < 0.4 or not self.name.endswith(".json"):
            return changed_bytes(content, random)
        return json.dumps(changed_json(json.loads(content), random)).encode()


class Facts(Kind):
    """Facts of the user, as JSON."""

    name = "facts.json"

    def prepare(self, request: pytest.FixtureRequest) -> None:
        fact = {"prompt": "{} speaks", "target_new": "Spanish", "target_true": "French", "case_id": 1}
        more = {"paraphrase_prompts": ["Mara's language is"], "neighborhood_prompts": ["Ilo Staidel speaks"]}
        facts = [{"subject": "Mara Flousano", **fact, **more}, {"subject": "Ilo", **fact, "case_id": 2}]
        (self.folder / self.name).write_text(json.dumps(facts))

    def read(self, folder: Path) -> None:
        _as_written(DatasetSettings(name="facts", format="facts", path=folder / self.name))


class CounterFact(Facts):
    """Records of CounterFact."""

    name = "counterfact.json"

    def prepare(self, request: pytest.FixtureRequest) -> None:
        rewrite = {
            "prompt": "{} speaks", "relation_id": "P1", "subject": "Mara Flousano",
            "target_new": {"str": "Spanish", "id": "Q1"}, "target_true": {"str": "French", "id": "Q2"},
        }  # fmt: skip
        record = {
            "case_id": 1, "pararel_idx": 2, "requested_rewrite": rewrite, "attribute_prompts": ["Ilo"],
            "paraphrase_prompts": ["Mara's language is"], "neighborhood_prompts": ["Ilo speaks"],
            "generation_prompts": ["Mara says"],
        }  # fmt: skip
        (self.folder / self.name).write_text(json.dumps([record]))

    def read(self, folder: Path) -> None:
        _as_written(DatasetSettings(name="counterfact", format="counterfact", path=folder / self.name))


class ModelYaml(Kind):
    """A model of the user's, as YAML."""

    name = "model.yaml"

    def prepare(self, request: pytest.FixtureRequest) -> None:
        folder = request.getfixturevalue("gpt2_folder")
        content = {
            "name": "mine", "path": str(folder), "defaults": {"corpus": "embedded", "dataset": "embedded"},
            "editing": {"layers": [1], "preservation_weight": 5}, "methods": {"memit": {"layers": [2]}},
        }  # fmt: skip
        (self.folder / self.name).write_text(json.dumps(content))

    def changed(self, content: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return changed_bytes(content, random)
        return json.dumps(changed_json(json.loads(content), random)).encode()

    def read(self, folder: Path) -> None:
        settings = compose([f"model={folder / self.name}"])
        settings.model_dump_json().encode()


class _OfModel(Kind):
    """A file of a checkpoint."""

    def prepare(self, request: pytest.FixtureRequest) -> None:
        shutil.copytree(request.getfixturevalue("gpt2_folder"), self.folder, dirs_exist_ok=True)

    def read(self, folder: Path) -> None:
        checkpoint = open_checkpoint(folder)
        checkpoint.check_readable()
        checkpoint.check_weights()
        decoder = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu")
        _holds_what_the_file_says(decoder, folder / "model.safetensors")
        ids = decoder.tokenizer("Mara speaks", return_tensors="pt")["input_ids"]
        assert ids.max() < decoder.model.config.get_text_config().vocab_size


class Config(_OfModel):
    name = "config.json"


class Tokenizer(_OfModel):
    name = "tokenizer.json"


class Weights(_OfModel):
    name = "model.safetensors"

    def changed(self, content: bytes, random: Random) -> bytes:
        return (changed_bytes if random.random() < 0.5 else changed_safetensors)(content, random)


class Gguf(Kind):
    """A quantised model."""

    name = "model.gguf"

    def prepare(self, request: pytest.FixtureRequest) -> None:
        pytest.importorskip("gguf", reason="needs the package gguf, which the extra dev installs")
        from tests.tasks.model.test_gguf import pack

        pack(request.getfixturevalue("llama_folder"), self.folder / self.name)

    def read(self, folder: Path) -> None:
        out = folder / "out"
        out.mkdir()
        dequantise(folder / self.name, out, self.name)
        checkpoint = open_checkpoint(out)
        checkpoint.check_readable()
        checkpoint.load_tokenizer()


class Statistics(Kind):
    """C0 of another tool."""

    name = "transformer.h.1.mlp.c_proj_float32_mom2_100.npz"

    def prepare(self, request: pytest.FixtureRequest) -> None:
        root = torch.randn(_WIDTH, _WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        write_second_moments(self.folder / self.name, SecondMoments(root @ root.T, 1000), 100)

    def read(self, folder: Path) -> None:
        found = read_second_moments(folder / self.name, _WIDTH)
        with np.load(folder / self.name, allow_pickle=False) as content:
            total = torch.from_numpy(content["mom2.mom2"]).double()
        wanted = (total + total.T) / 2 / found.count
        assert torch.allclose(found.covariance, wanted, rtol=1e-12, atol=0)
        assert torch.isfinite(found.covariance).all()


class Delta(Kind):
    """A delta file. Whoever changes its tensors may also change their checksum."""

    name = TENSORS

    def prepare(self, request: pytest.FixtureRequest) -> None:
        self._base: Decoder = load(request.getfixturevalue("gpt2_folder"))
        self._sums = checksums(self._base)
        made(self.folder / "delta", self._base, draw(self._base, 1))
        for file in (self.folder / "delta").iterdir():
            file.rename(self.folder / file.name)

    def change(self, folder: Path, random: Random) -> None:
        name = random.choice([TENSORS, ABOUT, LEDGER])
        file, content = folder / name, (folder / name).read_bytes()
        if name == TENSORS:
            file.write_bytes((changed_bytes if random.random() < 0.5 else changed_safetensors)(content, random))
            about = json.loads((folder / ABOUT).read_text())
            forged = {**about, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            (folder / ABOUT).write_text(json.dumps(forged if random.random() < 0.8 else about))
        elif random.random() < 0.4:
            file.write_bytes(changed_bytes(content, random))
        else:
            file.write_text(json.dumps(changed_json(json.loads(content), random)))

    def read(self, folder: Path) -> None:
        delta = read_delta(folder)
        check_modules([delta], self._base, "M")
        check_applies([delta], state_of(self._sums), None, "M", independent=False)
        stacked = apply_stack(self._base, [delta], self._sums, None, independent=False)
        for place, weight in stacked.weights.items():
            assert torch.isfinite(weight).all()
            assert weight.shape == weight_at(self._base, place).shape


class LedgerFile(Kind):
    """The ledger of a model."""

    name = LEDGER

    def prepare(self, request: pytest.FixtureRequest) -> None:
        base = load(request.getfixturevalue("gpt2_folder"))
        made(self.folder / "delta", base, draw(base, 1))
        shutil.move(self.folder / "delta" / LEDGER, self.folder / LEDGER)
        shutil.rmtree(self.folder / "delta")

    def read(self, folder: Path) -> None:
        found = read_ledger(folder)
        assert found is not None
        json.loads(found.model_dump_json())


KINDS = [Facts, CounterFact, ModelYaml, Config, Tokenizer, Weights, Gguf, Statistics, Delta, LedgerFile]


def _as_written(settings: DatasetSettings) -> None:
    """Records that are accepted stand in the file letter by letter, but for blanks around a text."""
    found = select_records(settings)
    texts = {one.strip() for one in _texts(json.loads(settings.required_path().read_text(encoding="utf-8-sig")))}
    for record in found:
        assert {record.request.subject, record.request.template, record.request.target_new.strip()} <= texts


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _texts(one)


def _holds_what_the_file_says(decoder: Decoder, file: Path) -> None:
    """Every weight of the model in memory is the tensor of its name in the file, read without the library."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    state = decoder.model.state_dict()
    types = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    for name, about in header.items():
        if name in state and about["dtype"] in types:
            start, end = (8 + length + place for place in about["data_offsets"])
            stored = np.frombuffer(content[start:end], types[about["dtype"]]).reshape(about["shape"])
            assert np.array_equal(state[name].numpy(), stored.astype(np.float32)), f"{name} is not what the file holds"


@contextmanager
def _bounded() -> Iterator[None]:
    """Neither much time nor much memory may be taken in this context."""

    def late(*_: object) -> None:
        raise TimeoutError(f"reading takes more than {_SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESSES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_changed_file_is_read_as_it_is_or_refused(kind, request, tmp_path):
    (tmp_path / "good").mkdir()
    file = kind(tmp_path / "good", request)
    shutil.copytree(file.folder, tmp_path / "same")
    file.read(tmp_path / "same")
    campaign = Campaign(f"changes of {kind.name}", few=30)
    failed: list[str] = []
    for case in campaign.cases():
        folder = shutil.copytree(file.folder, tmp_path / str(case))
        file.change(folder, campaign.random)
        try:
            with _bounded():
                file.read(folder)
            campaign.counts["read"] += 1
        except FactsmithError:
            campaign.counts["refused"] += 1
        except BaseException as error:  # A panic of Rust is one.
            if isinstance(error, KeyboardInterrupt):
                raise
            campaign.counts["FAILED"] += 1
            failed.append(f"{folder}: {type(error).__name__}: {error}"[:600])
            continue
        shutil.rmtree(folder)
    assert not failed, "\n".join(failed[:20])
