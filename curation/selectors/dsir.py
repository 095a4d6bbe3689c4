"""DSIR, for texts: resample raw texts by how much likelier their words are in a target.

Xie et al., "Data Selection for Language Models via Importance Resampling", NeurIPS 2023. There are no embeddings and no
clusters here, so it is called by itself: `ngram_counts` of the target and of the raw texts, `log_ratio` of both, `select`.
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
"""What words and pairs of words are hashed into."""
_WORD = re.compile(r"\w+|[^\w\s]+")
_SMOOTHING = 1e-8
_AT_ONCE = 4096


def buckets(text: str) -> np.ndarray:
    """(M,) int64: the bucket of each word and of each pair of words in a row. Words are lower-cased; punctuation counts."""
    words = _WORD.findall(text.lower())
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    hashes = [hashlib.blake2b(gram.encode(errors="replace"), digest_size=8).digest() for gram in words + pairs]
    return (np.frombuffer(b"".join(hashes), dtype="<u8") % BUCKETS).astype(np.int64)


def ngram_counts(texts: Iterable[str]) -> np.ndarray:
    """(BUCKETS,) int64: how many words and pairs of words of all texts fall into each bucket."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for text in texts:
        np.add.at(counts, buckets(text), 1)
    return counts


def log_ratio(target: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """(BUCKETS,) float64: log p_target - log p_raw, from the counts of both. DataError if either has no words."""
    if target.sum() == 0 or raw.sum() == 0:
        raise DataError(
            f"There must be words on both sides; found {target.sum()} in the target and {raw.sum()} in the raw texts."
        )
    return np.log(target / target.sum() + _SMOOTHING) - np.log(raw / raw.sum() + _SMOOTHING)


def select(texts: Iterable[tuple[int, str]], ratio: np.ndarray, budget: int, *, rng_key: int) -> np.ndarray:
    """Ascending row ids (S,) of `budget` of the (row id, text), all if fewer, drawn without replacement by importance.

    The log weight of a text is the sum of `ratio` (BUCKETS,) over its words and pairs. Adding Gumbel noise and taking the
    largest draws by weight (Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019). Noise belongs to the row id,
    so the order of texts does not matter; texts are read once and not kept.
    """
    return np.sort(np.array([row for _, row in heapq.nlargest(budget, _noisy(texts, ratio, rng_key))], dtype=np.int64))


def _noisy(texts: Iterable[tuple[int, str]], ratio: np.ndarray, rng_key: int) -> Iterator[tuple[float, int]]:
    """The log weight of each text with its noise, and its row id."""
    waiting = iter(texts)
    while some := list(islice(waiting, _AT_ONCE)):
        rows = [row for row, _ in some]
        chance = ((rng.order(rng_key, np.array(rows)) >> np.uint64(12)) + 0.5) * 2.0**-52
        noise = -np.log(-np.log1p(-chance))
        weights = [ratio[buckets(text)].sum() for _, text in some]
        yield from zip((weights + noise).tolist(), rows, strict=True)
