"""Train the embedded model: a GPT-2 with two million parameters that learns the facts of an invented world.

The training text (``world``) makes so small a model editable: a document has several subjects, a relation has several
templates, and facts are read at the subject's last token. Some windows start with a BOS and some do not, because
prompts do both. The MLP is wide for the model's size, because all edits share the d_k dimensions of the key space.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import layout_for
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.model.embedded.world import RELATIONS, World

__all__ = ["Recipe", "pretrain", "recall"]

END_OF_TEXT = "<|endoftext|>"


_TOKENIZER_DOCUMENTS = 20_000
"""Documents that the tokenizer is trained on."""


@dataclass(frozen=True)
class Recipe:
    """Shape and training of the model. The defaults produce the weights that ship with Factsmith."""

    width: int = 128
    blocks: int = 6
    heads: int = 4
    key_width: int = 1024
    context: int = 128
    vocabulary: int = 1500
    steps: int = 2600
    windows: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    seed: int = 0


def pretrain(
    out: Path,
    *,
    world: World | None = None,
    recipe: Recipe | None = None,
    checkpoint_every: int = 200,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, float]:
    """Train the model and write it to ``out`` as a Hugging Face checkpoint, with weights in float16.

    After an interruption, the next call with the same ``out`` continues from the last training checkpoint. Its final
    weights are those of an uninterrupted run, because the text of a step depends only on the seed and the step.

    Args:
        out: folder of the checkpoint. It is created if it does not exist.
        world: the world whose facts the model learns; ``None`` for the default world.
        recipe: shape and training of the model; ``None`` for the defaults.
        checkpoint_every: number of steps between training checkpoints.
        advance: called with the number of steps just finished.

    Returns:
        The share of facts recalled with each template, by ``relation_id/template``.
    """
    world, recipe = world or World(), recipe or Recipe()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(world, recipe)
    model = _new_model(recipe)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    checkpoint = _Checkpoint(out / "checkpoint.safetensors", {"recipe": asdict(recipe), "world": world.fingerprint})
    model.train()
    first = checkpoint.restore(model, optimiser)
    advance(first)
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        windows = _windows(world, tokenizer, recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=windows, attention_mask=torch.ones_like(windows)).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        advance(1)
        if (step + 1) % checkpoint_every == 0:
            checkpoint.save(model, optimiser, step + 1)

    model.eval().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    shares = recall(Decoder(model.float(), tokenizer, layout_for(model.config, str(out))), world)
    summary = {"world": world.fingerprint, "recipe": asdict(recipe), "recall": shares}
    (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n")
    checkpoint.remove()
    return shares


def recall(decoder: Decoder, world: World) -> dict[str, float]:
    """Share of people whose object the model recalls exactly, for each ``relation_id/template``."""
    shares = {}
    for index, relation in enumerate(RELATIONS):
        for template in relation.templates:
            prompts = [
                encode_prompt(decoder.tokenizer, template, person.name, relation.objects[person.objects[index]])
                for person in world.people
            ]
            found = continuation_likelihoods(decoder, prompts, most_tokens=8192)
            shares[f"{relation.relation_id}/{template}"] = sum(one.exact for one in found) / len(found)
    return shares


def _train_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    rng = random.Random(f"tokenizer/{recipe.seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (world.document(rng) for _ in range(_TOKENIZER_DOCUMENTS)),
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        # GPT-2 adds an embedding for token types if the tokenizer returns them.
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )


def _new_model(recipe: Recipe) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.blocks,
        n_head=recipe.heads,
        n_inner=recipe.key_width,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # Transformers uses the global generator.
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def _schedule(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate: a linear warm-up times a cosine decay to 0.02."""
    decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / recipe.steps))
    return min(1.0, (step + 1) / recipe.warmup) * decay


def _windows(world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, step: int) -> Tensor:
    """Tokens (windows, context) of concatenated documents. About half of the windows start with a BOS."""
    rng = random.Random(f"windows/{recipe.seed}/{step}")
    rows = []
    for _ in range(recipe.windows):
        row = [tokenizer.bos_token_id] if rng.random() < 0.5 else []
        while len(row) < recipe.context:
            texts = [world.document(rng) for _ in range(4)]
            for tokens in tokenizer(texts)["input_ids"]:
                row += [*tokens, tokenizer.eos_token_id]
        rows.append(row[: recipe.context])
    return torch.tensor(rows)


class _Checkpoint:
    """Weights and optimiser state of one training run, in one file that is replaced atomically."""

    def __init__(self, path: Path, run: dict[str, object]) -> None:
        self.path = path
        self.run = run

    def restore(self, model: GPT2LMHeadModel, optimiser: torch.optim.Optimizer) -> int:
        """Load the checkpoint. Returns the step to continue from; 0 if there is no checkpoint of this run."""
        if not self.path.is_file():
            return 0
        with safe_open(self.path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        if state["run"] != self.run:
            return 0
        tensors = load_file(self.path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"{name}.value"])
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(state["step"])),
                    "exp_avg": tensors[f"{name}.exp_avg"],
                    "exp_avg_sq": tensors[f"{name}.exp_avg_sq"],
                }
        return int(state["step"])

    def save(self, model: GPT2LMHeadModel, optimiser: torch.optim.Optimizer, step: int) -> None:
        tensors = {}
        for name, parameter in model.named_parameters():
            moments = optimiser.state[parameter]
            tensors[f"{name}.value"] = parameter.detach()
            tensors[f"{name}.exp_avg"] = moments["exp_avg"]
            tensors[f"{name}.exp_avg_sq"] = moments["exp_avg_sq"]
        fresh = self.path.with_suffix(".new")
        save_file(tensors, fresh, metadata={"state": json.dumps({"run": self.run, "step": step})})
        os.replace(fresh, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
