"""Small models to test on, a Prefect to run flows in, and a home that is not the user's."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Threads that wait must not spin: tests run side by side on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What Prefect logs, at the level that the command line has, is read by nobody here. It looks when it is imported.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
# What is imported stays. To look for garbage in it, again and again, took a twelfth of the time of the tests.
gc.disable()

import torch  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
"""The devices on which what is computed on a device is tested."""

SERVED = {"prefect_server", "forked", "killed"}
"""Fixtures that start a server, or the process that others are forked from."""

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run only tests that compare a decoder with transformers on every family by default, and those with servers first.

    What is built on the decoder, or where its weights are, does not depend on the family. One family of each kind of
    block shows it, and the others do in ``make test-all``.
    """
    for item in items:
        family = item.callspec.params.get("model_folder") if hasattr(item, "callspec") else None
        alike = item.path.stem in ALIKE or item.get_closest_marker("one_family") is not None
        compared = "decoder" in item.path.parts and item.path.stem != "test_placement"
        written = family == NORMALISED and not {"edit", "values"}.isdisjoint(item.path.parts)
        needed = family in KINDS_OF_BLOCKS or compared or written
        if family is not None and (family != "gpt2" if alike else not needed):
            item.add_marker(pytest.mark.slow)
    # Of several processes of pytest-xdist, the one that begins at the top does these, and starts what they share.
    items.sort(key=lambda item: SERVED.isdisjoint(item.fixturenames))


def pytest_collection_finish() -> None:
    """Look for garbage only among what tests make."""
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is read or written, telemetry is off, and one thread makes times and bits repeat."""
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("session")
        patch.setenv("FACTSMITH_HOME", str(base / "home"))
        patch.setenv("PREFECT_HOME", str(base / "prefect"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from factsmith.tasks.pipeline.environment import prepare_command_line

        before = dict(os.environ)
        prepare_command_line()
        torch.set_num_threads(1)
        # A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and stop by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        for name in set(os.environ) - set(before):
            del os.environ[name]


@pytest.fixture(scope="session")
def prefect_server(_quiet: None, _mlflow_tables: None) -> Iterator[None]:
    """A Prefect server, for tests of how runs appear in Prefect and of commands from end to end."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def database(home: Path, _mlflow_tables: None) -> None:
    """MLflow's database is in the test's home: a command in a process of its own would make its tables for seconds."""
    from factsmith.tasks.tracking.tracker import connect

    connect(home)


@pytest.fixture
def stages_in_mlflow() -> None:
    """Runs in this process log their stages to MLflow, for tests that look at these. Other tests do without."""


@pytest.fixture
def _light_mlflow(request: pytest.FixtureRequest, _mlflow_tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import without_stages_in_mlflow

    if "stages_in_mlflow" not in request.fixturenames:
        without_stages_in_mlflow(monkeypatch)


@pytest.fixture
def plain_flows(_light_mlflow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows and stages as plain functions, for tests of what a run computes and stores.

    On a tiny model Prefect takes as long as the run itself.
    """
    from tests.runs import run_as_functions

    run_as_functions(monkeypatch)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh ``FACTSMITH_HOME``."""
    path = tmp_path / "home"
    monkeypatch.setenv("FACTSMITH_HOME", str(path))
    return path


@pytest.fixture
def shared() -> Path:
    """Real data and a trained model that not every machine has."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data that is kept beside the checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 whose tokenizer adds no BOS."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=400, n_positions=96, n_embd=24, n_layer=4, n_head=2, n_inner=40,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    return _save(GPT2LMHeadModel, config, _tokenizer(bos=False), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with grouped attention heads, whose tokenizer adds a BOS."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400, max_position_embeddings=96, hidden_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, _tokenizer(bos=True), tmp_path_factory.mktemp("llama"))


ROTARY = {
    "vocab_size": 400, "max_position_embeddings": 96, "hidden_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
GROUPED = {**ROTARY, "num_key_value_heads": 2}
GEMMA = {
    **GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64, "final_logit_softcapping": 20.0,
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}  # With tied embeddings, some random models repeat one token for ever.
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.5] * 3, "long_factor": [4.0] * 3,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FALCON = {**ROTARY, "ffn_hidden_size": 40, "pad_token_id": 0}

FAMILIES = {
    "gpt2": None,
    "llama": None,
    "gptj": (
        "GPTJ",
        {
            "vocab_size": 400, "n_positions": 96, "n_embd": 24, "n_layer": 4, "n_head": 2, "rotary_dim": 4,
            "n_inner": 40, "bos_token_id": 0, "eos_token_id": 0, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
            "resid_pdrop": 0.0, "initializer_range": 0.2,
        },
    ),
    "gpt_neox": ("GPTNeoX", {**ROTARY, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("GPTNeoX", {**ROTARY, "rotary_pct": 0.5, "use_parallel_residual": False}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 64}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GEMMA, "layer_types": ALTERNATING, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3Text", {**GEMMA, "layer_types": ALTERNATING, **UNTIED}),
    "phi3": ("Phi3", {**GROUPED, "rope_parameters": LONGROPE}),
    "opt": (
        "OPT",
        # Of so few units, ReLU leaves some that no text activates, and C0 is then singular.
        {**ROTARY, **UNTIED, "ffn_dim": 40, "dropout": 0.0, "init_std": 0.2, "activation_function": "gelu"},
    ),
    "falcon": ("Falcon", FALCON),
    "falcon-new": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": (
        "Falcon",
        {**FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "bloom": ("Bloom", {**ROTARY, "n_head": 4, "n_layer": 4, "seq_length": 96}),
}  # fmt: skip
"""Tiny models of every family; the first two have fixtures of their own."""

ALIKE = ("test_search", "test_trace")
"""Modules of tests that need one family only. What they test uses nothing of a model but its decoder."""

KINDS_OF_BLOCKS = ("gpt2", "llama", "gptj")
"""Families with an MLP after the attention, a gated one, and one beside the attention."""

NORMALISED = "gemma2"
"""A family with a norm after the MLP. Value vectors and edits are computed in another way for it."""


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of any family."""
    import transformers

    @cache
    def make(name: str) -> Path:
        prefix, parts = FAMILIES[name]
        config = getattr(transformers, f"{prefix}Config")(**parts)
        kind = transformers.AutoModelForCausalLM.from_config
        return _save(kind, config, _tokenizer(bos=prefix in ("Mistral",)), tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Path:
    """Each of the tiny models in turn."""
    if FAMILIES[request.param] is None:
        folder: Path = request.getfixturevalue(f"{request.param}_folder")
        return folder
    return family_folder(request.param)


def plain_blocks(model):
    """The blocks of a transformers model, known apart from the layouts."""
    (found,) = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    return found


def plain_projection(block):
    """The MLP output projection of a block, known apart from the layouts."""
    names = ("c_proj", "fc_out", "dense_4h_to_h", "down_proj", "fc2")
    mlp = getattr(block, "mlp", block)
    (found,) = (getattr(mlp, name) for name in names if hasattr(mlp, name))
    return found


def hidden_of(output):
    """Hidden states of what a block returns, which in some families is more."""
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture
def decoder(model_folder: Path):
    """Each of the tiny models in memory. It is loaded once, and each test has a copy."""
    from factsmith.tasks.decoder.decoder import Decoder

    loaded = _loaded(model_folder)
    return Decoder(copy.deepcopy(loaded.model), copy.deepcopy(loaded.tokenizer), loaded.layout)


@cache
def _loaded(folder: Path):
    return load(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Hugging Face hub on this machine, empty."""
    from tests.fake_hub import fake_hub

    with fake_hub(tmp_path / "hf", monkeypatch) as fake:
        yield fake


@pytest.fixture
def small_disk(tmp_path: Path):
    """A folder on a disk of its own, and a function that sets the disk's size in kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or unmount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder, lambda size: subprocess.run([mount, "-o", f"remount,size={size}k", str(folder)], check=True)
    finally:
        subprocess.run([unmount, "-l", str(folder)], check=True)


def load_plain(folder: Path, dtype: str = "float32"):
    """The model as transformers loads it.

    Its weights get memory of their own. As pages of the file they would be aligned in another way, and the last bits of
    products depend on that.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def load(folder: Path, dtype: str = "float32", device: str = "cpu"):
    from factsmith.tasks.model.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return checkpoint.load(checkpoint.load_tokenizer(), dtype=dtype, device=device)


def _tokenizer(*, bos: bool):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.model.embedded.world import World

    special = ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [fields["paraphrase_prompts"][1] for fields in World(people_count=60).records()]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _save(kind, config, tokenizer, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = kind(config)
        for parameter in model.parameters():  # biases and norms of real models are not what they start with
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="session")
def _mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's migrations take a second. Run them once, and copy the database afterwards."""
    from mlflow.store.db import utils

    template = tmp_path_factory.mktemp("mlflow") / "empty.db"
    initialise = utils._initialize_tables

    def copy(engine: Any) -> None:
        if not template.exists():
            initialise(engine)
            shutil.copyfile(engine.url.database, template)
        else:
            engine.dispose()
            shutil.copyfile(template, engine.url.database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture
def arguments(gpt2_folder: Path) -> Callable[..., list[str]]:
    """Arguments of a run on the tiny GPT-2, with some more."""
    from tests.runs import tiny_arguments

    return lambda *more: tiny_arguments(gpt2_folder, *more)


@pytest.fixture
def pipeline(plain_flows: None, home: Path, arguments: Callable[..., list[str]]) -> Callable[..., Any]:
    """Runs the pipeline on the tiny model, with some more arguments."""
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.run import run

    return lambda *more: run(compose(arguments(*more)))


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory, gpt2_folder: Path, _mlflow_tables: None):
    """A home with the run that ``pipeline()`` does, and its report."""
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.run import run
    from tests.runs import run_as_functions, tiny_arguments, without_stages_in_mlflow

    path = tmp_path_factory.mktemp("once") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTSMITH_HOME", str(path))
        run_as_functions(patch)
        without_stages_in_mlflow(patch)
        return path, run(compose(tiny_arguments(gpt2_folder)))


@pytest.fixture
def ran(run_once, home: Path):
    """The report of ``pipeline()``. The test's home is a copy of the one where it ran."""
    path, report = run_once
    shutil.copytree(path, home)
    return report


@pytest.fixture
def precomputed(run_once, home: Path) -> None:
    """The statistics and contexts of the tiny model are in the test's home, as ``pipeline`` would make them."""
    for kind in ("model", "tokens", "keys", "covariance", "factor", "contexts"):
        shutil.copytree(run_once[0] / "artifacts" / kind, home / "artifacts" / kind)


@pytest.fixture
def store(home: Path):
    """The artifact store of the test's home."""
    from factsmith.artifacts.store import Store

    return Store(home)


@pytest.fixture
def factsmith(monkeypatch: pytest.MonkeyPatch, capsys, home: Path, _light_mlflow: None) -> Callable[..., Any]:
    """Runs the command line in this process, in a home of its own."""
    from factsmith.flows.cli.main import main
    from tests.runs import Result

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["factsmith", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1 if leave.code else 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(factsmith, home: Path) -> Callable[..., str]:
    """Runs a command that must exit with code 2, one clear message and no files. Returns the message."""

    def call(*arguments: str, clean: bool = True) -> str:
        result = factsmith(*arguments)
        assert result.code == 2, result
        assert result.out == ""
        assert "Traceback" not in result.err
        if clean:
            assert not list(home.glob("artifacts/*/*/*"))
            assert not (home / "mlflow.db").exists()
        assert not list(home.glob("staging/*"))
        return result.err

    return call


@pytest.fixture
def killed(home: Path, arguments, monkeypatch):
    """Run the pipeline in a process that is killed just before it publishes the n-th artifact of a kind."""
    from factsmith.tasks.keys import stage as keys_stage
    from tests.processes import kill_before, start

    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)

    def call(kind: str, number: int = 1, *more: str) -> None:
        process = start(kill_before, kind, number, arguments(*more))
        process.join(300)
        assert process.exitcode == -signal.SIGKILL

    return call
