"""Time and peak memory of each stage of precompute for a model as wide as GPT-2 XL.

    python benchmarks/large.py [--multiplier 2] [--facts 0] [--device auto] [--blocks 18] [--unkept]

The model is random and has only the first 18 blocks of GPT-2 XL, because precompute does not run the blocks above the
edited layers. Each command runs in a process of its own, as when a user starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

LAYERS = [13, 14, 15, 16, 17]


def make_model(folder: Path, blocks: int) -> None:
    """Write the random model. Call this in a separate process, so that its memory is freed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from factsmith.artifacts.store import Store
    from factsmith.flows.configuration.composition import compose
    from factsmith.tasks.planning.run import Run

    config = GPT2Config(n_embd=1600, n_head=25, n_layer=blocks, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    Run(compose(), Store(folder / "unused")).model.tokenizer.save_pretrained(folder)


def measured(arguments: list[str], home: Path) -> tuple[dict[str, object], float, float, str]:
    """Run the command line.

    Returns:
        Its JSON, wall seconds, peak resident bytes of the process and its children, and the command.
    """
    environment = {**os.environ, "FACTSMITH_HOME": str(home)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "factsmith.flows.cli", *arguments, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        own = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, own.memory_info().rss + sum(one.memory_info().rss for one in own.children(True)))
            except psutil.Error:
                continue
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(output), time.perf_counter() - started, peak, " ".join(arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--multiplier", type=float, default=2)
    parser.add_argument("--facts", type=int, default=0, help="also edit with this many facts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--blocks", type=int, default=18)
    parser.add_argument("--unkept", action="store_true", help="sum keys up without storing them")
    given = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        model, home = Path(folder) / "model", Path(folder) / "home"
        maker = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import large; from pathlib import Path; "
        )
        maker += f"large.make_model(Path({str(model)!r}), {given.blocks})"
        subprocess.run([sys.executable, "-c", maker], check=True)
        arguments = [
            "model=local", f"model.path={model}", "corpus=embedded", f"method.layers={LAYERS}", "dataset=embedded",
            f"corpus.dynamic_multiplier={given.multiplier:g}", f"runtime.device={given.device}",
            f"corpus.keep_keys={str(not given.unkept).lower()}",
        ]  # fmt: skip
        runs = [measured(["precompute", *arguments], home)]
        if given.facts:
            runs.append(measured(["edit", *arguments, f"method.batch_size={given.facts}", "dataset.split=all"], home))
        for report, seconds, peak, command in runs:
            console.print(command.replace(str(folder), ""), style="dim")
            table = Table(caption=f"peak {peak / 2**30:.2f} GiB, {seconds:.0f} s", caption_justify="left")
            for column in ("stage", "state", "seconds"):
                table.add_column(column, justify="right" if column == "seconds" else "left")
            for stage in report["stages"]:
                table.add_row(stage["name"], stage["state"], f"{stage['seconds']:.1f}")
            console.print(table)


if __name__ == "__main__":
    main()
