"""The embedded model and its corpus, to try the API without a download."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factsmith.tasks.corpus.sources.embedded import EmbeddedCorpus
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.model.embedded import ASSETS

__all__ = ["embedded"]


def embedded() -> tuple[Any, Any, Iterator[str]]:
    """The small model that ships with Factsmith, which knows an invented world.

    Returns:
        The model (a GPT-2 of two million parameters, float32), its tokenizer, and texts about its world, without end.
    """
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(ASSETS, dtype=torch.float32)
    corpus = EmbeddedCorpus(0)
    return model, AutoTokenizer.from_pretrained(ASSETS), (corpus.document(place)[1] for place in itertools.count())
