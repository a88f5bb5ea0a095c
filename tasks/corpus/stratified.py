"""A corpus whose documents alternate between topics. A topic is a cluster of documents with similar words.

The keys of a few thousand documents mostly represent the corpus's most frequent topics. Alternating between topics
represents all of them equally. This is stratified sampling with equal allocation, over strata found by k-means on
TF-IDF vectors.
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
"""Shows the progress of work that has a name and a total, as ``pipeline.progress`` does."""

_WORDS = 2**16
"""Number of columns that words are hashed to."""

_DOCUMENTS_PER_BATCH = 256


class StratifiedCorpus:
    """The first ``pool`` documents of a source, alternating between topics, then the others in the source's order.

    The pool is kept in memory, because a stream would otherwise have to be read again for every document.

    Args:
        source: source of the documents.
        pool: number of documents to cluster.
        topics: number of clusters.
        seed: seed of the clustering.
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
        """The documents of the pool, in their new order."""
        documents: list[tuple[int, str]] = []
        words = []
        with self.progress("pool", self.pool) as advance:
            for start in range(0, self.pool, _DOCUMENTS_PER_BATCH):
                batch = []
                for place in range(start, min(start + _DOCUMENTS_PER_BATCH, self.pool)):
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
    """How often each word occurs in each text, (texts, 2^16). Words are hashed to columns."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counted: sparse.csr_matrix = HashingVectorizer(n_features=_WORDS, alternate_sign=False, norm=None).transform(texts)
    return counted


def topics_of(words: sparse.csr_matrix, *, topics: int, seed: int) -> np.ndarray:
    """The cluster of each document, by mini-batch k-means (Sculley 2010) on TF-IDF vectors of unit length.

    Args:
        words: (documents, words), word counts.
        topics: number of clusters, limited to the number of documents.
        seed: seed of the initial centres and of the mini-batches.

    Returns:
        (documents,) integers. On one machine, equal input gives equal clusters. Sums are computed in one thread,
        because several threads would add them in the order in which they happen to finish.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfTransformer
    from threadpoolctl import threadpool_limits

    clusters = MiniBatchKMeans(min(topics, words.shape[0]), random_state=seed, n_init=3, batch_size=1024)
    with threadpool_limits(1):
        labels: np.ndarray = clusters.fit_predict(TfidfTransformer(sublinear_tf=True).fit_transform(words))
    return labels


def take_turns(labels: np.ndarray) -> list[int]:
    """The positions of ``labels``, ordered so that every label comes once before any label comes twice, and so on.

    Labels take turns in the order in which they first appear. The positions of one label are in ascending order. A
    label without further positions is skipped.
    """
    turns = {label: count() for label in dict.fromkeys(labels.tolist())}
    order = {label: number for number, label in enumerate(turns)}
    keys = [(next(turns[label]), order[label]) for label in labels.tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)
