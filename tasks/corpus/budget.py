"""How many tokens of the corpus a run reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.settings import CorpusSettings

__all__ = ["Reads", "TokenBudget"]

Reads: TypeAlias = Literal["corpus", "samples", "nothing"]
"""The keys that a preservation operator is made from: those of the tokens that the corpus settings ask for, a given
number of samples, or none."""


@dataclass(frozen=True)
class TokenBudget:
    """Token counts of a run.

    Attributes:
        steps: token counts that the statistics may cover, ascending. There is more than one only while d_m has to be
            found; the count is 0 if the method reads no keys.
        held_out: tokens after them whose keys are needed to find d_m; 0 if d_m is given.
        any_method: the most tokens that any method would read with these settings.
        width: d_k.
        corpus: the corpus settings.
        reads: what the token counts are taken from.
    """

    steps: tuple[int, ...]
    held_out: int
    any_method: int
    width: int
    corpus: CorpusSettings
    reads: Reads

    @classmethod
    def of(cls, corpus: CorpusSettings, width: int, *, reads: Reads, samples: int) -> TokenBudget:
        """The budget of a run.

        Args:
            corpus: the corpus settings.
            width: d_k.
            reads: the keys that the method's preservation operator is made from.
            samples: number of samples, if it is made from samples.
        """
        multiples = (math.ceil(one * width) for one in corpus.multipliers)
        covariance = (corpus.tokens,) if corpus.tokens else tuple(multiples)
        if corpus.statistics is not None:  # No token is read for C0.
            return cls((0,), 0, max(covariance[-1], samples), width, corpus, reads)
        steps = {"corpus": covariance, "samples": (samples,), "nothing": (0,)}[reads]
        held_out = corpus.auto.held_out if corpus.is_auto and reads == "corpus" else 0
        return cls(steps, held_out, max(covariance[-1], samples), width, corpus, reads)

    @property
    def searches(self) -> bool:
        """Whether d_m has to be found."""
        return self.held_out > 0

    @property
    def least(self) -> int:
        """The tokens without which the run cannot start."""
        return self.steps[0] + self.held_out

    @property
    def most(self) -> int:
        """The most tokens that the statistics may cover."""
        return self.steps[-1]

    def steps_within(self, available: int) -> list[int]:
        """The steps that a corpus of ``available`` tokens allows."""
        return [count for count in self.steps if count + self.held_out <= available]

    def more_tokens(self, wanted: int) -> str:
        """A remedy: the setting to change for ``wanted`` tokens, which is 2 d_k or more."""
        corpus = self.corpus
        if corpus.statistics is not None:
            return f"import statistics over {wanted:,} tokens or more, unless these are"
        if corpus.tokens is not None:
            return f"raise corpus.tokens (now {corpus.tokens}) to {wanted} or more"
        setting = "auto.steps" if corpus.is_auto else "dynamic_multiplier"
        return f"raise corpus.{setting} (now {corpus.multipliers[-1]:g}) to {wanted / self.width:g} or more"

    def too_small(self, available: int, wanted: int) -> InputError:
        """The error of a corpus that has ``available`` tokens instead of ``wanted``."""
        corpus = self.corpus
        fewer = f"corpus.tokens to {available}"
        if self.reads == "samples":
            fewer = f"method.low_rank.n_samples to {available}"
        elif corpus.is_auto:
            fewer = "corpus.auto.steps or corpus.auto.held_out"
        elif corpus.tokens is None:
            fewer = f"corpus.dynamic_multiplier below {available / self.width:.3g}"
        return InputError(
            f"The corpus {corpus.path or corpus.repository or corpus.name} is too small.",
            got=f"{available:,} tokens",
            expected=f"{wanted:,} tokens",
            remedy=f"lower {fewer}, or add text",
        )
