"""Time of every stage at the shape of a published model, against the least time that this machine allows.

    python benchmarks/gpu.py [--shape gpt2-xl|llama-3-8b|cf-gpt2] [--seconds 400] [--device auto] [--home DIR]

The model is random and made here, so neither a registry nor a network is needed. What this machine can do is measured
first: its rate of matrix products in the data types used, the bandwidth of copies to the CPU, and the rate at which
files are written and hashed. A stage's floor is the time that its FLOP and bytes, as `factsmith plan` estimates them,
take at these rates. Two plain implementations run for comparison: one that collects keys layer by layer, and one that
optimises the value vector of one fact after the other through the whole model.

Work that would begin after --seconds is left out and named. On a CPU the same work runs on a small model of the same
family. Results are printed, and written to benchmarks/results/ as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
import transformers
from floors import CONTEXTS, plain_loop
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import write
from factsmith.flows.precompute import Prepared, prepare
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.edit.sequence import SequenceWriter
from factsmith.tasks.evaluation.stage import evaluation
from factsmith.tasks.pipeline.workspace import StageReport
from factsmith.tasks.planning.plan import StagePlan, plan
from factsmith.tasks.planning.run import Run

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shape:
    """The shape of a published model, and the work that is done with it.

    Attributes:
        config: config of the model.
        small: config of the model that takes its place on a CPU.
        dtype: data type of its weights.
        layers: edited layers, and those of the small model.
        facts: facts that are written together.
    """

    config: transformers.PretrainedConfig
    small: transformers.PretrainedConfig
    dtype: torch.dtype
    layers: tuple[list[int], list[int]]
    facts: int


def gpt2(**sizes: int) -> GPT2Config:
    return GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)


def llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=8192, rope_theta=5e5, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **sizes
    )


SMALL_GPT2 = gpt2(n_embd=64, n_layer=6, n_head=4, vocab_size=8000)
SHAPES = {
    "gpt2-xl": Shape(
        gpt2(n_embd=1600, n_layer=48, n_head=25), SMALL_GPT2, torch.float32, ([13, 14, 15, 16, 17], [1, 2]), 64
    ),
    "llama-3-8b": Shape(
        llama(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8,
        ),
        llama(
            vocab_size=8000, hidden_size=64, intermediate_size=224, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        torch.bfloat16,
        ([4, 5, 6, 7, 8], [1, 2]),
        8,
    ),
    "cf-gpt2": Shape(
        gpt2(n_embd=160, n_layer=8, n_head=4, vocab_size=8000), SMALL_GPT2, torch.float32, ([0, 1, 2], [1, 2]), 64
    ),
}  # fmt: skip


@dataclass
class Row:
    """One line of the table: what was done, its seconds, and the seconds of its floor if there is one."""

    work: str
    seconds: float
    flop: float = 0.0
    bytes: int = 0
    floor: float | None = None


class Clock:
    """The time that is left, and the time that a call takes on a device."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._end = time.monotonic() + seconds
        self._device = device

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# ------------------------------------------------------------------------------------------------- the machine


@dataclass(frozen=True)
class Machine:
    """What the machine can do: FLOP per second by data type, and bytes per second."""

    products: dict[str, float]
    to_cpu: float
    to_disk: float
    hashed: float


def measure_machine(device: torch.device, home: Path, clock: Clock) -> Machine:
    size = 8192 if device.type == "cuda" else 1024
    products = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        matrix = torch.randn(size, size, device=device).to(dtype)
        best = min(clock.seconds(lambda matrix=matrix: matrix @ matrix) for _ in range(4))
        products[str(dtype).removeprefix("torch.")] = 2 * size**3 / best
    block = torch.randn(2**26 if device.type == "cuda" else 2**24, device=device)
    copied = 4 * len(block) / min(clock.seconds(block.cpu) for _ in range(3)) if device.type == "cuda" else float("inf")
    file, content = home / "written", block.cpu().numpy().tobytes()

    def write_file() -> None:
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()

    written = len(content) / min(clock.seconds(write_file) for _ in range(2))
    hashed = len(content) / min(clock.seconds(lambda: hashlib.file_digest(file.open("rb"), "sha256")) for _ in range(2))
    file.unlink()
    return Machine(products, copied, written, hashed)


def floor(stage: StagePlan, machine: Machine, dtype: str) -> float:
    """Seconds of the stage's arithmetic and of its bytes, as if neither waited for anything."""
    kinds = {"factor": "float64", "principal directions": "float64", "covariance": "float32"}
    return stage.flop / machine.products[kinds.get(stage.name, dtype)] + stage.bytes / machine.to_disk


# ---------------------------------------------------------------------------------------------------- the work


def make_model(config: transformers.PretrainedConfig, dtype: torch.dtype, device: torch.device, folder: Path) -> None:
    """Write a random checkpoint, with the tokenizer of the embedded model."""
    build = GPT2LMHeadModel if config.model_type == "gpt2" else LlamaForCausalLM
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="4GB")
    Run(compose(), Store(folder / "unused")).model.tokenizer.save_pretrained(folder)


def make_corpus(file: Path, documents: int) -> None:
    """Write documents of random words of the embedded model's world."""
    embedded = Run(compose(), Store(file.parent / "unused"))
    words = [word for record in embedded.records for word in record.request.prompt.split()]
    drawn = random.Random(0)
    lines = (json.dumps({"text": " ".join(drawn.choices(words, k=120))}) for _ in range(documents))
    file.write_text("\n".join(lines))


def layer_by_layer(run: Run, prepared: Prepared) -> None:
    """C0 as the public MEMIT code collects it: for each layer, all tokens run through the whole model again."""
    decoder, device, taken = run.model.decoder, run.workspace.device, 0
    assert prepared.keys is not None
    stream = prepared.keys.tokens
    blocks = [block for shard in stream.shards for block in stream.blocks(shard)]
    for layer in run.layers:
        total, taken = torch.zeros(decoder.key_width, decoder.key_width, device=device), 0

        def add(_: int, keys: torch.Tensor, total: torch.Tensor = total) -> None:
            rows = keys.flatten(0, 1).float()
            total.addmm_(rows.T, rows)

        for first in range(0, len(blocks), 8):
            if taken >= prepared.tokens:
                break
            batch = blocks[first : first + 8]
            taken += sum(map(len, batch))
            with torch.inference_mode(), decoder.tapped([layer], add, stop=False):
                decoder.model(input_ids=pad(batch, device), use_cache=False)
        torch.save(total.cpu(), run.workspace.store.root / "plain.pt")
    (run.workspace.store.root / "plain.pt").unlink()


def edits_in_sequence(run: Run, prepared: Prepared, count: int, clock: Clock) -> list[float]:
    """Seconds of each edit of a sequence, one fact at a time, with what was written before preserved."""
    writer = SequenceWriter(
        run.model.decoder,
        run.settings.method,
        run.layers,
        {layer: prepared.factors.operator(layer) for layer in run.layers},
        CONTEXTS,
        directions={},
        most_tokens=8192,
        memory=2**31,
    )
    times = []
    with writer:
        for record in run.records[:count]:
            if clock.left <= 0:
                break
            times.append(clock.seconds(lambda record=record: writer.write([record.request], 1.0)))
    return times


def heaviest(run: Run, prepared: Prepared) -> str:
    """The ten operations that take longest in one edit of a sequence, as torch's profiler finds them."""
    on_gpu = run.workspace.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        edits_in_sequence(run, prepared, 1, Clock(60, run.workspace.device))
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40))


class Bench:
    """Does the work, and keeps the rows of the table and the names of what was left out."""

    def __init__(self, shape: str, device: torch.device, clock: Clock, folder: Path) -> None:
        self.small = device.type != "cuda"
        chosen = SHAPES[shape]
        self.dtype = torch.float32 if self.small else chosen.dtype
        self.config = chosen.small if self.small else chosen.config
        self.facts = chosen.facts
        self.device, self.clock, self.folder = device, clock, folder
        self.rows = [Row("imports", time.time() - psutil.Process().create_time())]
        self.left_out: list[str] = []
        self.profile = ""
        make_model(self.config, self.dtype, device, folder / "model")
        make_corpus(folder / "corpus.jsonl", 2500)
        self.arguments = [
            "model=local", f"model.path={folder / 'model'}", "corpus=local", f"corpus.path={folder / 'corpus.jsonl'}",
            "dataset=embedded", f"method.layers={chosen.layers[self.small]}", "method.preservation_weight=1000",
            f"runtime.device={device}", "method.value.stop_loss=0", "dataset.split=all",
        ]  # fmt: skip
        self.machine = measure_machine(device, folder, clock)

    def run(self) -> None:
        started = time.perf_counter()
        prepared, current = self.batch()
        self.rows.append(Row("all of the above, with planning, loading and logging", time.perf_counter() - started))
        self.optional("plain: keys and C0 layer by layer", lambda: layer_by_layer(current, prepared))
        request = current.records[0].request
        settings = current.settings.method.value
        self.optional(
            "plain: the value vector of one fact",
            lambda: plain_loop(current.model.decoder, request, current.layers[-1], settings),
        )
        if not self.small and self.dtype == torch.float32:
            self.tf32()
        for history in ("full", "compressed"):
            self.sequence("memit", history)
        self.sequence("memit-f", "full")
        if self.clock.left > 0:
            self.profile = heaviest(current, prepared)

    def batch(self) -> tuple[Prepared, Run]:
        """Everything that one command does: from the fingerprint to the scores of a batch."""
        run = self.opened("method=memit", f"method.batch_size={self.facts}", "dataset.batches=1")
        plans = {one.name: one for one in plan(run)}
        with run.logged("bench", flow="run"):
            prepared = prepare(run)
            edits = write(run, prepared)
            evaluation(run.workspace, run.model, run.families, run.batches, edits)
        self.add_stages(run.workspace.reports, plans)
        return prepared, run

    def tf32(self) -> None:
        """The same value vectors with products in TF32."""
        if not self.has_time("values (TF32)"):
            return
        run = self.opened("method.value.tf32=true", f"method.batch_size={self.facts}", "dataset.batches=1")
        with run.logged("bench", flow="edit"):
            write(run, prepare(run))
        self.add_stages([one for one in run.workspace.reports if one.name == "values"], of=" (TF32)")

    def sequence(self, method: str, history: str) -> None:
        name = f"{method}, one fact after the other, history {history}"
        if not self.has_time(name):
            return
        run = self.opened(f"method={method}", "method.batch_size=1", f"method.sequence.history={history}")
        with run.logged("bench", flow="edit"):
            prepared = prepare(run)
        if method != "memit":
            self.add_stages([one for one in run.workspace.reports if one.name == "factor"], of=f" ({method})")
        times = edits_in_sequence(run, prepared, 4 if self.small else 100, self.clock)
        if len(times) > 2:
            self.rows.append(Row(f"{name}: an edit", sum(times[1:]) / len(times[1:])))
        if len(times) > 20:
            self.rows.append(Row(f"{name}: an edit, the last 10 of {len(times)}", sum(times[-10:]) / 10))

    def opened(self, *arguments: str) -> Run:
        of_c0 = [] if "method=memit-f" in arguments else ["corpus.dynamic_multiplier=10", "method.ridge=auto"]
        return Run(compose([*self.arguments, *of_c0, *arguments]), Store(self.folder / "home"))

    def add_stages(
        self, reports: Sequence[StageReport], plans: Mapping[str, StagePlan] = MappingProxyType({}), *, of: str = ""
    ) -> None:
        dtype = str(self.dtype).removeprefix("torch.")
        for report in reports:
            row = Row(f"{report.name}{of}", report.seconds)
            if planned := plans.get(report.name):
                row.flop, row.bytes, row.floor = planned.flop, planned.bytes, floor(planned, self.machine, dtype)
            self.rows.append(row)

    def optional(self, name: str, work: Callable[[], object]) -> None:
        if self.has_time(name):
            self.rows.append(Row(name, self.clock.seconds(work)))

    def has_time(self, name: str) -> bool:
        """Whether there is time for the work ``name``. If not, it is noted as left out."""
        if self.clock.left <= 0:
            self.left_out.append(name)
            return False
        return True


# -------------------------------------------------------------------------------------------------- the report


def about(bench: Bench, shape: str) -> dict[str, Any]:
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
    ).stdout.strip()
    card = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    return {
        "shape": f"{shape}, small" if bench.small else shape,
        "card": card,
        "cpu": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def table(rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    for row in rows:
        line = [row.work, f"{row.seconds:,.3f}", "", "", "", ""]
        if row.floor is not None:
            line[2:] = [f"{row.flop / 1e12:,.3f}", f"{row.bytes / 1e9:,.3f}", f"{row.floor:,.3f}", ""]
            if row.floor > 1e-3:
                line[5] = f"{row.seconds / row.floor:,.1f}"
        lines.append(line)
    return lines


COLUMNS = ["work", "seconds", "TFLOP", "GB written", "floor, s", "ratio"]


def report(bench: Bench, shape: str, disk: int, results: Path) -> None:
    facts, machine = about(bench, shape), bench.machine
    rates = [f"{name} {rate / 1e12:,.2f} TFLOP/s" for name, rate in machine.products.items()]
    rates += [f"written {machine.to_disk / 1e9:,.2f} GB/s", f"hashed {machine.hashed / 1e9:,.2f} GB/s by one thread"]
    if bench.device.type == "cuda":
        rates.append(f"copied to the CPU {machine.to_cpu / 1e9:,.1f} GB/s")
    notes = [", ".join(f"{key} {value}" for key, value in facts.items() if value), "Measured here: " + ", ".join(rates)]
    notes.append(f"On the disk after it: {disk / 1e9:,.2f} GB without the model.")
    if bench.device.type == "cuda":
        notes.append(f"Most memory of the card in use: {torch.cuda.max_memory_allocated(bench.device) / 1e9:,.1f} GB.")
    if bench.small:
        notes.append("There is no GPU here: a small model of the same family ran on the CPU.")
    if bench.left_out:
        notes.append(f"Left out, because the time was up: {'; '.join(bench.left_out)}.")
    console = Console(width=130)
    shown = Table(title=f"{facts['shape']} on {facts['card']}")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "work" else "right")
    lines = table(bench.rows)
    for line in lines:
        shown.add_row(*line)
    console.print(shown, *notes, sep="\n")
    results.mkdir(parents=True, exist_ok=True)
    name = f"{shape}-{facts['card']}".lower().replace(" ", "-").replace("/", "-")
    markdown = [f"# {facts['shape']} on {facts['card']}", "", *(f"{note}\n" for note in notes)]
    markdown += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    markdown += ["| " + " | ".join(line) + " |" for line in lines]
    if bench.profile:
        markdown += ["", "The ten heaviest operations of one edit:", "", "```", bench.profile, "```"]
    (results / f"{name}.md").write_text("\n".join(markdown) + "\n")
    content = {
        **facts, "machine": vars(machine), "rows": [vars(row) for row in bench.rows],
        "left_out": bench.left_out, "disk": disk,
    }  # fmt: skip
    (results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-xl")
    parser.add_argument("--seconds", type=float, default=400, help="begin nothing more after this time")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--home", type=Path, help="folder for the model and the artifacts; a temporary one if not given"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    name = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    with nullcontext(given.home) if given.home else tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bench = Bench(given.shape, device, Clock(given.seconds, device), place)
        bench.run()
        files = (place / "home" / "artifacts").rglob("*")
        report(bench, given.shape, sum(file.stat().st_size for file in files if file.is_file()), given.results)


if __name__ == "__main__":
    main()
