"""DSIR for texts: raw texts resampled by how much more probable their words are in a target than in the raw texts.

Xie et al., "Data Selection for Language Models via Importance Resampling", NeurIPS 2023. It reads texts instead of embeddings
and clusters, so it is not called through `SelectConfig`: call `ngram_counts` for the target and for the raw texts,
`log_ratio` of both, then `select`.
"""

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

import numpy as np

from curation.base import rng
from curation.base.errors import DataError

BUCKETS = 10_000
"""Number of buckets that words and pairs of words are hashed into."""
_WORD = re.compile(r"\w+|[^\w\s]+")
_SMOOTHING = 1e-8
_BATCH = 4096
"""Texts weighed at once."""


def buckets(text: str) -> np.ndarray:
    """(M,) int64: the bucket of each word and of each pair of neighbouring words. Lower-cased; punctuation counts."""
    words = _WORD.findall(text.lower())
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    hashes = [hashlib.blake2b(gram.encode(errors="replace"), digest_size=8).digest() for gram in words + pairs]
    return (np.frombuffer(b"".join(hashes), dtype="<u8") % BUCKETS).astype(np.int64)


def ngram_counts(texts: Iterable[str]) -> np.ndarray:
    """(BUCKETS,) int64: the number of words and pairs of words of all texts in each bucket."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for text in texts:
        np.add.at(counts, buckets(text), 1)
    return counts


def log_ratio(target: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """(BUCKETS,) float64: log p_target - log p_raw, from the counts of both (BUCKETS,). DataError if either has no words."""
    if target.sum() == 0 or raw.sum() == 0:
        raise DataError(
            f"There must be words on both sides; found {target.sum()} in the target and {raw.sum()} in the raw texts. Give "
            "texts that have words."
        )
    return np.log(target / target.sum() + _SMOOTHING) - np.log(raw / raw.sum() + _SMOOTHING)


def select(texts: Iterable[tuple[int, str]], ratio: np.ndarray, budget: int, *, rng_key: int) -> np.ndarray:
    """Ascending row ids (S,) of `budget` of the pairs (row id, text), or all if fewer, drawn by weight without replacement.

    The log weight of a text is the sum of `ratio` (BUCKETS,) over its words and pairs of words. Adding Gumbel noise to it and
    taking the largest sums draws by weight (Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019). The noise is
    a function of the row id, so the order of texts does not matter; texts are read once and not kept. `rng_key` is the random
    key (`rng.key`).
    """
    return np.sort(np.array([row for _, row in heapq.nlargest(budget, _noisy(texts, ratio, rng_key))], dtype=np.int64))


def _noisy(texts: Iterable[tuple[int, str]], ratio: np.ndarray, rng_key: int) -> Iterator[tuple[float, int]]:
    """Yield the noisy log weight and the row id of each of `texts`."""
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        rows = [row for row, _ in batch]
        chance = ((rng.order(rng_key, np.array(rows)) >> np.uint64(12)) + 0.5) * 2.0**-52
        noise = -np.log(-np.log1p(-chance))
        weights = [ratio[buckets(text)].sum() for _, text in batch]
        yield from zip((weights + noise).tolist(), rows, strict=True)
