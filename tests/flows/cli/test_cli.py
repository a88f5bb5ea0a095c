"""The command line: output, exit codes, and every kind of input that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factsmith.artifacts.store import Store
from factsmith.tasks.decoder.decoder import Decoder

FACT = {"subject": "Mara Flousano", "prompt": "{} speaks", "target_new": "Danish"}


def facts_file(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


# ------------------------------------------------------------------------------------------------------- answers


def test_json_is_all_there_is_on_stdout_and_tables_name_what_matters(factsmith, prefect_server, arguments):
    result = factsmith("run", "--json", *arguments())
    assert result.code == 0, result
    document = json.loads(result.out)
    assert set(document) == {
        "run_id", "mlflow_run_id", "dynamic_multiplier", "stages", "metrics", "intervals", "intervals_over", "records",
        "trajectory", "abilities", "lm_eval", "drift", "answers", "seconds_an_edit", "inference",
        "export",
    }  # fmt: skip
    assert document["dynamic_multiplier"] == 20
    assert {tuple(stage) for stage in document["stages"]} == {("name", "state", "seconds", "artifact", "metrics")}
    assert {stage["state"] for stage in document["stages"]} == {"built"}
    for phase in ("before", "after"):
        assert {"ES", "PS", "NS", "S"} <= set(document["metrics"][phase])
        assert all(-100 <= value <= 100 for value in document["metrics"][phase].values())

    result = factsmith("run", *arguments())
    assert result.code == 0
    for word in ("before", "after", "ES", "PS", "NS", "S", "10 cached", "factsmith ui", "covariance"):
        assert word in result.out


def test_facts_are_written_into_a_model(factsmith, precomputed, plain_flows, arguments, tmp_path):
    facts = facts_file(tmp_path, FACT, {**FACT, "subject": "Ilo", "prompt": "The sport of Ilo is"})
    out = tmp_path / "edited"
    given = [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]
    result = factsmith("edit", facts, *given, "--out", out, "--json")
    assert result.code == 0, result
    assert (out / "model.safetensors").is_file()
    written = json.loads((out / "factsmith.json").read_text())
    assert {fact["subject"] for fact in written["facts"]} == {"Mara Flousano", "Ilo"}
    assert json.loads(result.out)["metrics"] == {}


def test_facts_without_true_objects_are_scored_as_far_as_they_can_be(
    factsmith, precomputed, plain_flows, arguments, tmp_path
):
    given = [word for word in arguments() if not word.startswith("dataset")]
    result = factsmith("run", *given, "dataset=facts", f"dataset.path={facts_file(tmp_path, FACT)}", "--json")
    after = json.loads(result.out)["metrics"]["after"]
    assert after["ES"] is None
    assert after["Eff*"] is not None
    assert factsmith("run", *given, "dataset=facts", f"dataset.path={tmp_path / 'facts.jsonl'}").code == 0


def test_the_store_can_be_looked_at(factsmith, plain_flows, arguments, home):
    report = json.loads(factsmith("precompute", "--json", *arguments()).out)
    listed = factsmith("store", "ls")
    assert "covariance" in listed.out
    assert "8 artifacts" in listed.out  # a model, a shard of tokens, and keys, covariance and factor of two layers
    stages = {stage["name"]: stage["artifact"] for stage in report["stages"]}
    shown = json.loads(factsmith("store", "show", stages["model"]).out)
    assert shown["summary"]["architecture"] == "gpt2"
    assert len(json.loads(factsmith("store", "show", stages["factor"]).out)) == 2
    assert "all bytes as they were written" in factsmith("store", "verify").out
    (victim,) = (path for path in Store(home).all_paths() if path.parent.parent.name == "tokens")
    with (victim / "blocks.parquet").open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    result = factsmith("store", "verify")
    assert result.code == 1
    assert "blocks.parquet has other bytes" in result.out
    assert "Traceback" not in result.err


def test_choices_and_settings_are_shown(factsmith, home):
    result = factsmith("conf")
    for word in ("model=embedded", "method=emmet", "method.preservation_weight", "d_m"):
        assert word in result.out
    assert json.loads(factsmith("conf", "--json", "method=emmet").out)["method"]["slack"] == 0.1
    assert not home.exists()


def test_arguments_are_shown_as_they_are(factsmith):
    """Whatever Rich would make of them."""
    result = factsmith("conf", 'model.name="[/x] [red]a :smile:"')
    assert result.code == 0
    assert "[/x] [red]a :smile:" in " ".join(result.out.split())


def test_the_ui_wants_runs_first(factsmith, home):
    result = factsmith("ui")
    assert result.code == 2
    assert "factsmith run" in result.err


@pytest.mark.parametrize(
    "command", [[], ["run"], ["edit"], ["pretrain"], ["store"], ["ui"], ["conf"], ["precompute"], ["serve"]]
)
def test_help_is_there(factsmith, command):
    assert "Usage" in factsmith(*command, "--help").out


# --------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "method=memmit"], "did you mean 'memit'"),
        (["run", "method.batchsize=3"], "did you mean 'batch_size'"),
        (["run", "model=cf-gpt2", "corpus.path=x", "dataset.path=y"], "model.path must be given"),
        (["run", "method.layers=[0,6]"], "Layer 6 is out of range"),
        (["run", "method.layers=[-1]"], "Layer -1 is out of range"),
        (["run", "corpus.block_length=4096"], "are too long"),
        (["run", "method.batch_size=1000"], "has 320 records"),
        (["run", "model.path=/nowhere"], "/nowhere does not exist"),
        (["run", "corpus=local", "corpus.path=/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["run", "dataset=counterfact", "dataset.path=/nowhere.json"], "/nowhere.json does not exist"),
        (["run", "runtime.device=cuda:77"], "no device 'cuda:77'"),
        (["run", "runtime.device=toaster"], "no device 'toaster'"),
        (["run", "runtime.device_map=auto", "runtime.cpu_memory_mb=4"], "does not fit the memory"),
        (["run", "runtime.gpu_memory_mb=4"], "set runtime.device_map=auto"),
        (["run", "model.revision=main"], "has no revisions"),
        (["run", "method.contexts=/nowhere.json"], "/nowhere.json does not exist"),
        (["edit", "/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["edit", "dataset.batches=2", "--out", "edited"], "no single model"),
        (["store", "show", "abc"], "No artifacts"),
        (["run", "--no-such-option"], "No such option"),
        (["rum"], "No such command"),
    ],
)
def test_settings_that_cannot_be_used(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "{} speaks", "target_new": "x"}, "Record 1 of"),
        ({**FACT, "prompt": "She speaks"}, "subject is not in the prompt"),
        ({**FACT, "target_new": ""}, "'target_new' is empty"),
        ({**FACT, "target_new": "Welsh"}, "contradict each other"),
        ([], "is not an object"),
    ],
)
def test_facts_that_cannot_be_used(refused, tmp_path, record, message):
    assert message in refused("edit", facts_file(tmp_path, FACT, record))


def test_a_fact_longer_than_the_model_takes(refused, plain_flows, arguments, tmp_path):
    given = [word for word in arguments() if "dataset" not in word and "batch_size" not in word]
    long = {**FACT, "prompt": "{} is" + " is" * 200}
    message = refused("edit", facts_file(tmp_path, FACT, long), *given)
    assert "Case 1 does not fit" in message
    assert "at most 96 tokens" in message
    nearly = {**FACT, "prompt": "{}" + " is" * 85}  # fits as it stands, not behind a sampled sentence
    message = refused("edit", facts_file(tmp_path, FACT, nearly), *given, clean=False)
    assert "Case 1 does not fit" in message
    assert "in context" in message


def test_prompts_longer_than_the_model_takes_are_reported(
    stages_in_mlflow, factsmith, plain_flows, arguments, tmp_path, home, caplog
):
    from mlflow import MlflowClient

    given = [word for word in arguments() if "dataset" not in word]
    facts = facts_file(tmp_path, {**FACT, "target_true": "Greek", "paraphrase_prompts": ["x " * 300, "A"]})
    result = factsmith("run", *given, "dataset=facts", f"dataset.path={facts}", "--json")
    assert result.code == 0, result
    assert "1 of 3 prompts are too long" in caplog.text
    assert json.loads(result.out)["metrics"]["after"]["PS"] is not None
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "factsmith")
    (stage,) = client.search_runs([experiment.experiment_id], "tags.stage = 'evaluation'")
    assert stage.data.metrics["prompts_skipped"] == 1


def test_a_file_that_is_no_json(refused, tmp_path):
    (tmp_path / "facts.json").write_text("{")
    assert "is not JSON" in refused("edit", tmp_path / "facts.json")
    (tmp_path / "facts.json").write_text("")
    assert "is not JSON" in refused("edit", tmp_path / "facts.json")


def test_an_output_folder_that_is_taken(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert "exists already" in refused("edit", facts_file(tmp_path, FACT), "--out", tmp_path / "out")


def test_a_home_that_cannot_be_written(factsmith, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "file" / "home"))
    result = factsmith("run")
    assert result.code == 2
    assert "cannot be written" in result.err
    assert "FACTSMITH_HOME" in result.err


# ----------------------------------------------------------------------------------------------------- bad models


@pytest.fixture
def model(gpt2_folder, tmp_path) -> Path:
    return Path(shutil.copytree(gpt2_folder, tmp_path / "model"))


def test_a_model_without_config(refused, model, arguments):
    (model / "config.json").unlink()
    assert "has no config.json" in refused("run", *arguments(f"model.path={model}"))


@pytest.mark.parametrize("model_type", ["cohere", "no-such-thing"])
def test_a_model_of_an_unknown_family(refused, model, arguments, model_type):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    message = refused("run", *arguments(f"model.path={model}"))
    assert model_type in message
    assert "gpt2, gpt_neox, gptj, llama" in message


def test_experts_of_a_model_that_transformers_does_not_know(refused, model, arguments):
    config = {"model_type": "no-such-thing", "n_routed_experts": 64, "rope_scaling": {"type": "yarn"}}
    (model / "config.json").write_text(json.dumps(config))
    message = refused("run", *arguments(f"model.path={model}"))
    assert "mixture of experts" in message
    assert "n_routed_experts=64" in message


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_config_that_is_none(refused, model, arguments, text):
    (model / "config.json").write_text(text)
    assert "cannot be read" in refused("run", *arguments(f"model.path={model}"))


def test_a_model_without_weights_or_with_pickled_ones(refused, model, arguments):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "never loaded" in refused("run", *arguments(f"model.path={model}"))


def test_a_model_without_a_tokenizer(refused, model, arguments):
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "no readable tokenizer" in refused("run", *arguments(f"model.path={model}"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(refused, plain_flows, model, arguments, value):
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.2.ln_1.weight"][3] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    message = refused("run", *arguments(f"model.path={model}"), clean=False)
    assert "NaN or infinity" in message
    assert "transformer.h.2.ln_1.weight" in message


def test_weights_that_are_cut_short(refused, plain_flows, model, arguments):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "not a complete safetensors file" in refused("run", *arguments(f"model.path={model}"), clean=False)


# -------------------------------------------------------------------------------------------- found while running


def kinds(home: Path) -> set[str]:
    return {path.parent.parent.name for path in Store(home).all_paths()}


def test_a_corpus_that_is_too_small(refused, plain_flows, arguments, tmp_path, home):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"text": "A short document about Rome."}))
    message = refused("run", *arguments("corpus=local", f"corpus.path={path}"), clean=False)
    assert "is too small" in message
    assert "lower corpus.dynamic_multiplier below 0." in message
    message = refused("run", *arguments("corpus=local", f"corpus.path={path}", "corpus.tokens=500"), clean=False)
    assert "lower corpus.tokens to " in message
    assert kinds(home) == {"model"}


def test_a_covariance_that_cannot_be_factorised(refused, plain_flows, factsmith, arguments):
    message = refused("run", *arguments("corpus.tokens=30"))
    assert "30 tokens" in message
    assert "got: rank" in message
    assert "expected: rank 40" in message
    assert "raise corpus.tokens (now 30) to 80 or more, or set method.ridge=auto" in message
    assert factsmith("run", *arguments("corpus.tokens=30", "method.ridge=auto")).code == 0


def test_a_remedy_follows_from_the_case(refused, plain_flows, arguments, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([json.dumps({"text": "The same words again."})] * 400))
    message = refused("run", *arguments("corpus=local", f"corpus.path={path}"), clean=False)
    assert "got: rank" in message
    assert "use a corpus with more varied text" in message
    assert "raise corpus" not in message


@pytest.mark.parametrize(("weight", "remedy"), [("1e300", "lower"), ("1e-300", "raise")])
def test_a_weight_that_float64_cannot_hold(refused, plain_flows, arguments, weight, remedy):
    message = refused("run", *arguments(f"method.preservation_weight={weight}"), clean=False)
    assert "for float64 arithmetic" in message
    assert f"{remedy} method.preservation_weight" in message


def test_a_layer_named_twice_is_refused(refused, arguments):
    message = refused("run", *arguments("method.layers=[0,0,1]"))
    assert "method.layers names a layer twice" in message


def test_a_file_of_facts_may_have_an_equals_sign_in_its_name(factsmith, refused, plain_flows, arguments, tmp_path):
    given = [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]
    path = facts_file(tmp_path, FACT).rename(tmp_path / "a=b.jsonl")
    assert factsmith("plan", path, *given).code == 0
    assert "There is no setting" in refused("edit", tmp_path / "c=d.json")


def test_a_warning_is_said_once():
    program = "\n".join(
        [
            "import logging",
            "from factsmith.flows.cli.common import start",
            "start()",
            "for word in ('one', 'one', 'two'):",
            "    logging.getLogger('factsmith').warning('said %s', word)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["said one", "said two"]


def test_keys_that_are_not_numbers(refused, plain_flows, arguments, home, monkeypatch):
    run = Decoder.run
    monkeypatch.setattr(
        Decoder, "run", lambda self, hidden, *given, **more: run(self, hidden * float("nan"), *given, **more)
    )
    message = refused("run", *arguments(), clean=False)
    assert "keys that are NaN" in message
    assert "keys" not in kinds(home)


def test_keys_too_large_for_half_precision(refused, plain_flows, arguments, home, monkeypatch):
    monkeypatch.setattr(
        "factsmith.tasks.keys.reader.block_keys",
        lambda decoder, blocks, layers, **_: {
            layer: torch.full((sum(map(len, blocks)), decoder.key_width), 1e5) for layer in layers
        },
    )
    message = refused("run", *arguments("corpus.key_dtype=float16"), clean=False)
    assert "do not fit float16" in message
    assert "keys" not in kinds(home)


def test_facts_that_collide(refused, plain_flows, arguments, tmp_path):
    """Equality at one key cannot mean two things."""
    context = tmp_path / "contexts.json"
    context.write_text('["{}"]')
    facts = facts_file(
        tmp_path,
        {"subject": "Ilo", "prompt": "{} speaks", "target_new": "Danish"},
        {"subject": "Ilo", "prompt": "{} plays", "target_new": "golf"},
    )
    given = [
        word for word in arguments("method=emmet", "method.slack=0", "method.batch_size=all") if "dataset" not in word
    ]
    message = refused(
        "run", *given, "dataset=facts", f"dataset.path={facts}", f"method.contexts={context}", clean=False
    )
    assert "cannot both be written exactly" in message
    assert "Ilo speaks" in message


def test_a_mistake_of_ours_keeps_its_traceback(factsmith, prefect_server, arguments, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("factsmith.tasks.values.stage.optimise_values", broken)
    with pytest.raises(ZeroDivisionError):
        factsmith("run", *arguments())


def test_a_failed_run_is_logged_as_failed(stages_in_mlflow, refused, prefect_server, arguments, home):
    from mlflow import MlflowClient

    refused("run", *arguments("method=alphaedit", "method.null_space.threshold=1e-12"), clean=False)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "factsmith")
    runs = client.search_runs([experiment.experiment_id])
    failed = {run.info.run_name for run in runs if run.info.status == "FAILED"}
    assert {name.partition(" · local · 6 facts")[0] for name in failed} == {"alphaedit", "factor"}


# ------------------------------------------------------------------------------------------------- the surroundings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", f"model.path={'a' * 300}"], "File name too long"),
        (["run", "corpus=local", f"corpus.path={'a' * 300}.jsonl"], "File name too long"),
        (["edit", "dataset=embedded", "--out", "a" * 300], "File name too long"),
        (["edit", "dataset=embedded", "--out", "/proc/edited"], "not a writable folder"),
        (["run", "runtime.threads=1000000"], "does not have 1000000 CPU cores"),
        (["run", "model.path=a\udcffb"], "cannot be"),
        (["run", "dataset.seed=99999999999999999999"], "64 bits"),
        (["run", "method.batch_size=true"], "not true or false"),
        (["run", "method=../config"], "no method"),
        (["edit", "."], "Is a directory"),
        (["ui", "--port", "70000"], "port"),
        (["pretrain", "--out", "/dev/null"], "cannot be created"),
        (["store", "rm", ""], "No artifacts"),
        (["store", "gc", "--unused", "-1"], "unused"),
    ],
)
def test_surroundings_that_cannot_be_used(refused, arguments, message):
    assert message in refused(*arguments)


def test_a_port_that_is_taken(refused, home, monkeypatch):
    import socket

    home.mkdir()
    (home / "mlflow.db").touch()
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("the server was started"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} of 127.0.0.1 cannot be used" in refused("ui", "--port", port, clean=False)


def command_line(*arguments: str, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "factsmith.flows.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def test_a_reader_that_leaves_early_sees_no_traceback(home):
    process = command_line("conf")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(60) != 0


def test_a_command_runs_without_a_terminal(home):
    process = command_line("conf", "--json", stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["model"]["name"] == "embedded"


def stopped(process: subprocess.Popen[str], number: int, *, group: bool) -> str | None:
    """What a process, or its whole group, says to a signal; ``None`` if it goes on."""
    os.killpg(process.pid, number) if group else process.send_signal(number)
    try:
        return process.communicate(timeout=90)[1]
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_run_that_is_stopped_says_so_and_can_go_on(prefect_server, database, home, arguments, number):
    """Ctrl-C reaches the whole process group, and with it a server of the run's own."""
    from prefect.settings import PREFECT_API_URL

    own = number == signal.SIGINT
    environment = {**os.environ, **({} if own else {"PREFECT_API_URL": PREFECT_API_URL.value()})}
    endless = arguments("method.preservation=identity", "method.value.steps=100000", "method.value.stop_loss=0")
    process = command_line("run", *endless, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while "contexts" not in kinds(home):  # it is at the value vectors, and would stay there for long
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        err = stopped(process, number, group=own)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same command to continue" in err
    assert err is not None, "the signal was lost"
    assert "Traceback" not in err
    assert not list(home.glob("staging/*"))
