"""A corpus whose topics take turns: its first documents clustered by their words, one of each cluster after the other.

With a few thousand documents, the keys of a corpus are those of whatever it is about most. Drawn topic by topic they
cover what there is: stratified sampling with equal allocation, over strata found by k-means on TF-IDF vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from scipy import sparse

from factsmith.tasks.corpus.source import CorpusSource, release

__all__ = ["StratifiedCorpus", "Progress", "take_turns", "topics_of"]

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of work with a name and a total, as ``pipeline.progress`` does."""

_WORDS = 2**16
"""Columns that words are hashed to."""

_DOCUMENTS_AT_ONCE = 256


class StratifiedCorpus:
    """The first ``pool`` documents of a source, every topic in turn, and then the others as they come.

    The pool is kept in memory, since a stream would have to be read again for every document.

    Args:
        source: of the documents.
        pool: documents that are clustered.
        topics: clusters.
        seed: of the clusters' first centres.
        progress: shows the progress of clustering.
    """

    def __init__(self, source: CorpusSource, *, pool: int, topics: int, seed: int, progress: Progress) -> None:
        self.source = source
        self.pool = pool
        self.topics = topics
        self.seed = seed
        self.progress = progress

    def recipe(self) -> dict[str, Any]:
        return {
            **self.source.recipe(),
            "strata": {
                "pool": self.pool,
                "topics": self.topics,
                "seed": self.seed,
                "scikit-learn": release("scikit-learn"),
            },
        }

    def document(self, place: int) -> tuple[int, str] | None:
        return self._head[place] if place < len(self._head) else self.source.document(place)

    @cached_property
    def _head(self) -> list[tuple[int, str]]:
        """The pool in its new order."""
        documents: list[tuple[int, str]] = []
        words = []
        with self.progress("pool", self.pool) as advance:
            for start in range(0, self.pool, _DOCUMENTS_AT_ONCE):
                batch = []
                for place in range(start, min(start + _DOCUMENTS_AT_ONCE, self.pool)):
                    if (found := self.source.document(place)) is None:
                        break
                    batch.append(found)
                if not batch:
                    break
                documents += batch
                words.append(count_words([text for _, text in batch]))
                advance(len(batch))
        if not documents:
            return []
        with self.progress("topics", 1) as advance:
            labels = topics_of(sparse.vstack(words, format="csr"), topics=self.topics, seed=self.seed)
            advance(1)
        return [documents[place] for place in take_turns(labels)]


def count_words(texts: list[str]) -> sparse.csr_matrix:
    """(texts, 2^16): how often each word occurs, words hashed to columns."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counted: sparse.csr_matrix = HashingVectorizer(n_features=_WORDS, alternate_sign=False, norm=None).transform(texts)
    return counted


def topics_of(words: sparse.csr_matrix, *, topics: int, seed: int) -> np.ndarray:
    """Cluster of each document, by mini-batch k-means (Sculley 2010) on TF-IDF vectors of length 1.

    Args:
        words: (documents, words) counts.
        topics: clusters, if there are as many documents.
        seed: of the first centres and of the batches.

    Returns:
        (documents,) integers. On one machine, equal input gives equal clusters: the sums are made in one thread, since
        threads would add them in whatever order they finish.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfTransformer
    from threadpoolctl import threadpool_limits

    clusters = MiniBatchKMeans(min(topics, words.shape[0]), random_state=seed, n_init=3, batch_size=1024)
    with threadpool_limits(1):
        labels: np.ndarray = clusters.fit_predict(TfidfTransformer(sublinear_tf=True).fit_transform(words))
    return labels


def take_turns(labels: np.ndarray) -> list[int]:
    """Positions of ``labels`` such that every label comes once before any comes twice, and so on.

    Labels take turns in the order in which they first appear, and each goes through its positions in order. A label
    that has run out is passed over.
    """
    turns = {label: count() for label in dict.fromkeys(labels.tolist())}
    seat = {label: number for number, label in enumerate(turns)}
    keys = [(next(turns[label]), seat[label]) for label in labels.tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)
