"""A model whose scores are known by heart: the same for every next token, whatever came before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def spelling_tokenizer(merges: Sequence[tuple[str, str]] = (), *, bos: bool = False):
    """One token a byte, but for ``merges``, which may reach over spaces ("Ġ")."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )  # fmt: skip


def constant_decoder(folder: Path, tokenizer, scores: Mapping[str, float]):
    """The GPT-2 in ``folder``, whose logits are ``scores`` at their tokens and 0 at all others, at every position."""
    from factsmith.tasks.model.checkpoint import open_checkpoint

    decoder = open_checkpoint(folder).load(tokenizer, dtype="float32", device="cpu")
    with torch.no_grad():
        norm, embedding = decoder.model.transformer.ln_f, decoder.model.transformer.wte
        norm.weight.zero_()
        norm.bias.zero_()
        norm.bias[0] = 1
        embedding.weight[:, 0] = 0  # the unembedding too
        for name, score in scores.items():
            embedding.weight[tokenizer.convert_tokens_to_ids(name), 0] = score
    return decoder


def nll_of(tokens: Sequence[str], scores: Mapping[str, float], *, vocabulary: int = 400) -> float:
    """Mean NLL of ``tokens`` by hand, nats."""
    total = math.log(sum(map(math.exp, scores.values())) + vocabulary - len(scores))
    return sum(total - scores.get(token, 0) for token in tokens) / len(tokens)
