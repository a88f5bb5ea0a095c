"""Compare the time of each stage with that of the least computation that gives the same result, in one process.

    python benchmarks/floors.py [cf-gpt2] [gpt2-small]

Times on a shared machine are noisy, so every figure is a ratio of medians of interleaved repetitions. The models are
random, because speed does not depend on what they know.
"""

from __future__ import annotations

import logging
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.tasks.corpus import stage as tokens_stage
from factsmith.tasks.covariance import stage as covariance_stage
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import PLACEHOLDER, EncodedPrompt, encode_prompt
from factsmith.tasks.evaluation.metrics.counterfact import FAMILY
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.selection import load_records
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.model import stage as model_stage
from factsmith.tasks.model.embedded.world import World
from factsmith.tasks.planning.run import Run
from factsmith.tasks.values.optimiser import ESSENCE_TEMPLATE, optimise_values
from factsmith.tasks.values.settings import ValueSettings

Rows = list[tuple[str, str, float, float]]
"""What is timed, its amount, our seconds, and the seconds of the least computation (the floor)."""

CONTEXTS = (
    "{}",
    "The first thing they said of it was. {}",
    "Therefore nobody was surprised at the news. {}",
    "Because of the weather we stayed. {}",
    "I have often thought of that. {}",
    "You know what they say. {}",
)


@dataclass(frozen=True)
class Shape:
    """The shape of a random GPT-2, and the amount of each kind of work."""

    blocks: int
    width: int
    heads: int
    vocabulary: int
    context: int
    layers: tuple[int, ...]
    key_tokens: int
    steps: int
    records: int
    repetitions: int


SHAPES = {
    "cf-gpt2": Shape(8, 160, 4, 6000, 256, (0, 1, 2), 24 * 640, 25, 64, 5),
    "gpt2-small": Shape(12, 768, 12, 50257, 1024, (3, 4, 5), 3 * 3072, 20, 16, 3),
}


def measured(repetitions: int, **works: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each kind of work. They take turns, so that the load of the machine affects all alike."""
    times: dict[str, list[float]] = defaultdict(list)
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if repetition:  # The first round is a warm-up.
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


# --------------------------------------------------------------------------------------------------------- keys


def time_keys(run: Run, shape: Shape) -> Rows:
    """Key collection and C0 through the store, against the stopped forward pass and the products alone."""
    workspace, wanted = run.workspace, run.budget.most
    model_stage.model.__wrapped__(workspace, run.model)
    stream = tokens_stage.tokens.__wrapped__(workspace, run.model, run.corpus, run.budget, wanted).value
    source = keys_stage.KeySource(run.model, run.layers, stream, run.settings.corpus.key_dtype)
    blocks = [block for shard in stream.shards for block in stream.blocks(shard)]
    decoder = run.model.decoder

    def ours() -> None:
        for kind in ("keys", "covariance"):
            for path in (workspace.store.root / "artifacts" / kind).glob("*/*"):
                path.rename(workspace.store.root / "staging" / f"old-{path.name}-{time.time_ns()}")
        collected = keys_stage.keys.__wrapped__(workspace, source, wanted).value
        covariance_stage.covariance.__wrapped__(workspace, collected, wanted)

    by_length: dict[int, list[list[int]]] = defaultdict(list)
    count = 0
    for block in blocks:
        if count >= wanted:
            break
        by_length[len(block)].append(block)
        count += len(block)
    batches = [
        torch.tensor(group[first : first + 64]) for group in by_length.values() for first in range(0, len(group), 64)
    ]

    def floor() -> None:
        sums = {layer: torch.zeros(decoder.key_width, decoder.key_width, dtype=torch.float64) for layer in shape.layers}

        def product(layer: int, keys: Tensor) -> None:
            rows = keys.flatten(0, 1).double()
            sums[layer].addmm_(rows.T, rows)

        for batch in batches:
            with torch.inference_mode(), decoder.tapped(shape.layers, product, stop=True):
                decoder.model.transformer(input_ids=batch, use_cache=False)

    times = measured(shape.repetitions, ours=ours, floor=floor)
    return [("keys and C0", f"{wanted:,} tokens", times["ours"], times["floor"])]


# ------------------------------------------------------------------------------------------------------- values


def time_values(decoder: Decoder, shape: Shape, requests: Sequence[EditRequest]) -> Rows:
    """Value vectors against the bare blocks above the edited layer, and against a plain loop through the model."""
    layer = shape.layers[-1]
    settings = ValueSettings(steps=shape.steps, learning_rate=0.2, clamp=1.5, stop_loss=0.0)
    rows = []
    for batch in (1, 16, 64):
        facts = requests[:batch]
        times = measured(
            shape.repetitions if batch < 64 else max(1, shape.repetitions - 2),
            ours=lambda facts=facts: optimise_values(decoder, facts, CONTEXTS, layer, settings, memory=2**31),
            floor=lambda facts=facts: bare_blocks(decoder, facts, layer, settings.steps),
        )
        rows.append((f"values, batch {batch}", "a fact", times["ours"] / batch, times["floor"] / batch))
        if batch == 64:
            plain = measured(1, plain=lambda: plain_loop(decoder, requests[0], layer, settings))["plain"]
            rows.append(("plain loop, fact by fact", "a fact", plain, times["ours"] / batch))
    return rows


def prompts_of(decoder: Decoder, fact: EditRequest) -> list[EncodedPrompt]:
    rewrites = [
        encode_prompt(decoder.tokenizer, context.replace(PLACEHOLDER, fact.template, 1), fact.subject, fact.target_new)
        for context in CONTEXTS
    ]
    return [*rewrites, encode_prompt(decoder.tokenizer, ESSENCE_TEMPLATE, fact.subject)]


def bare_blocks(decoder: Decoder, facts: Sequence[EditRequest], layer: int, steps: int) -> None:
    """Only the forward and backward passes of the blocks above ``layer``, from the lookup token on."""
    lengths: dict[int, int] = defaultdict(int)
    for fact in facts:
        *rewrites, _ = prompts_of(decoder, fact)
        for prompt in rewrites:
            lengths[len(prompt.inputs) - prompt.lookup] += 1
        lengths[1] += 1  # The essence prompt ends at its lookup token.
    inputs = [torch.randn(rows, length, decoder.width, requires_grad=True) for length, rows in lengths.items()]
    for step in range(steps):
        for hidden in inputs:
            output = hidden
            for block in decoder.blocks[layer + 1 :]:
                output = block(output)
            if step < steps - 1:
                output.sum().backward()


def plain_loop(decoder: Decoder, fact: EditRequest, layer: int, settings: ValueSettings) -> Tensor:
    """One fact in a plain implementation: every step runs seven prompts through the whole model, with all logits."""
    prompts, device = prompts_of(decoder, fact), decoder.device
    tokens = pad([prompt.inputs for prompt in prompts], device)
    delta = torch.zeros(decoder.width, requires_grad=True, device=device)
    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)

    def add(_module: object, _inputs: object, output: Tensor) -> Tensor:
        changed = output.clone()
        for row, prompt in enumerate(prompts):
            changed[row, prompt.lookup] += delta
        return changed

    handle = decoder.blocks[layer].register_forward_hook(add)
    for step in range(settings.steps):
        optimiser.zero_grad()
        predictions = decoder.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        loss = torch.zeros((), device=device)
        for row, prompt in enumerate(prompts[:-1]):
            first = len(prompt.inputs) - prompt.continued
            labels = torch.tensor(prompt.labels, device=device)
            picked = predictions[row, first : first + prompt.continued].gather(1, labels[:, None])
            loss = loss - picked.mean() / len(CONTEXTS)
        loss = loss + settings.weight_decay * delta.norm()
        if step == settings.steps - 1:
            break
        loss.backward()
        optimiser.step()
    handle.remove()
    return delta.detach()


# --------------------------------------------------------------------------------------------------- evaluation


def time_evaluation(decoder: Decoder, shape: Shape, records: Sequence[Record]) -> Rows:
    """All prompts of some records with both objects, against a bare forward pass on the same tokens without padding."""
    sequences = [
        encode_prompt(decoder.tokenizer, prompt, target=target).inputs
        for record in records
        for kind in FAMILY.kinds
        for prompt in record.prompts[kind]
        for target in (record.request.target_new, str(record.request.target_true))
    ]
    by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for sequence in sequences:
        by_length[len(sequence)].append(sequence)
    batches = [
        torch.tensor(group[first : first + 8192 // length])
        for length, group in by_length.items()
        for first in range(0, len(group), 8192 // length)
    ]

    @torch.inference_mode()
    def floor() -> None:
        for batch in batches:
            decoder.model.transformer(input_ids=batch, use_cache=False)

    times = measured(shape.repetitions, ours=lambda: FAMILY.score(decoder, records, most_tokens=8192), floor=floor)
    return [("evaluation", f"{len(sequences):,} continuations", times["ours"], times["floor"])]


def benchmark(name: str, console: Console) -> None:
    shape = SHAPES[name]
    config = GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.context, n_embd=shape.width, n_layer=shape.blocks,
        n_head=shape.heads, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        random_model = Path(folder) / "model"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            GPT2LMHeadModel(config).save_pretrained(random_model)
        embedded = Run(compose(), Store(Path(folder) / "home"))
        embedded.model.tokenizer.save_pretrained(random_model)
        arguments = [
            "model=local", f"model.path={random_model}", "corpus=embedded", "dataset=embedded",
            f"method.layers={list(shape.layers)}", f"corpus.tokens={shape.key_tokens}",
        ]  # fmt: skip
        run = Run(compose(arguments), Store(Path(folder) / "home"))
        records = load_records(run.settings.dataset)
        requests = [record.request for record in records]
        rows = time_keys(run, shape)
        rows += time_values(run.model.decoder, shape, requests)
        rows += time_evaluation(run.model.decoder, shape, records[: shape.records])
    table = Table(title=f"{name}: {shape.blocks} blocks of width {shape.width}, layers {shape.layers}")
    for column in ("work", "amount", "ms", "floor ms", "ratio"):
        table.add_column(column, justify="left" if column in ("work", "amount") else "right")
    for work, amount, seconds, floor in rows:
        table.add_row(work, amount, f"{1e3 * seconds:,.1f}", f"{1e3 * floor:,.1f}", f"{seconds / floor:.2f}")
    console.print(table)


def main() -> None:
    logging.disable(logging.WARNING)
    random.seed(0)
    console = Console(width=100)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(World().people)} people")
    for name in sys.argv[1:] or SHAPES:
        benchmark(name, console)


if __name__ == "__main__":
    main()
