import hashlib
import random
from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base import rng
from curation.base.errors import DataError
from curation.selectors import dsir
from curation.selectors.dsir import BUCKETS, buckets, log_ratio, ngram_counts, select

WORDS = st.lists(st.sampled_from(["red", "Green", "blue", "sky", "sea", "."]), max_size=8).map(" ".join)


def literal_features(text: str) -> Counter[int]:
    """Counts of hashed words and pairs of words."""
    words = text.lower().split()
    grams = words + [words[i] + " " + words[i + 1] for i in range(len(words) - 1)]
    return Counter(int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "little") % 10000 for gram in grams)


def literal_weight(text: str, target: list[str], raw: list[str]) -> float:
    """The log of p_target / p_raw of Xie et al., bags of hashed words and pairs."""
    text_counts = [sum((literal_features(one) for one in texts), Counter[int]()) for texts in (target, raw)]
    total = [sum(counts.values()) for counts in text_counts]
    return sum(
        count * (log(text_counts[0][bucket] / total[0] + 1e-8) - log(text_counts[1][bucket] / total[1] + 1e-8))
        for bucket, count in literal_features(text).items()
    )


def test_the_ratio_is_smoothed() -> None:
    ratio = log_ratio(ngram_counts(["sky"]), ngram_counts(["sky sea"]))
    sky, sea, both = buckets("sky sea")
    assert ratio[sky] == pytest.approx(log(1 + 1e-8) - log(1 / 3 + 1e-8))
    assert ratio[[sea, both]] == pytest.approx(log(1e-8) - log(1 / 3 + 1e-8))
    assert np.count_nonzero(ratio) == 3


@given(st.lists(WORDS, max_size=5))
def test_features_are_hashed_words_and_pairs_of_words(texts: list[str]) -> None:
    for text in texts:
        assert Counter(buckets(text).tolist()) == literal_features(text)
    expected = sum((literal_features(text) for text in texts), Counter[int]())
    counts = ngram_counts(iter(texts))
    assert counts.shape == (BUCKETS,)
    assert {int(bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts)} == dict(expected)


def test_punctuation_is_a_word_of_its_own() -> None:
    assert buckets("The sky, blue!").tolist() == buckets("the SKY , blue !").tolist()
    assert len(buckets("The sky, blue!")) == 5 + 4


@settings(max_examples=40)
@given(
    st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 99)
)
def test_texts_are_drawn_by_importance_with_gumbel_noise(target: list[str], raw: list[str], budget: int, seed: int) -> None:
    target, raw = [*target, "red sky"], [*raw, "blue sea"]
    ratio = log_ratio(ngram_counts(target), ngram_counts(raw))
    noisy = []
    for row, text in enumerate(raw):
        chance = ((int(rng.order(seed, np.array([row]))[0]) >> 12) + 0.5) / 2**52
        noisy.append(literal_weight(text, target, raw) - log(-np.log1p(-chance)))
    expected = np.sort(np.argsort(noisy)[::-1][:budget])
    assert select(enumerate(raw), ratio, budget, rng_key=seed).tolist() == expected.tolist()


@settings(max_examples=30)
@given(st.lists(WORDS, min_size=1, max_size=40), st.integers(1, 50), st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_matter(texts: list[str], budget: int, shuffler: random.Random) -> None:
    ratio = np.random.default_rng(0).normal(0, 1, BUCKETS)
    listed = [(7 * row, text) for row, text in enumerate(texts)]
    rows = select(listed, ratio, budget, rng_key=1)
    assert len(rows) == min(budget, len(texts))
    assert (np.diff(rows) > 0).all()
    shuffler.shuffle(listed)
    assert np.array_equal(select(iter(listed), ratio, budget, rng_key=1), rows)


def test_texts_read_a_few_at_a_time_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = np.random.default_rng(0).normal(0, 1, BUCKETS)
    texts = [f"word {i} of {i % 7}" for i in range(100)]
    whole = select(enumerate(texts), ratio, 30, rng_key=1)
    monkeypatch.setattr(dsir, "_BATCH", 7)
    assert np.array_equal(select(enumerate(texts), ratio, 30, rng_key=1), whole)
    assert not np.array_equal(select(enumerate(texts), ratio, 30, rng_key=2), whole)


def test_texts_like_the_target_are_preferred() -> None:
    draws = np.random.default_rng(0)
    common, special = [f"common{i}" for i in range(50)], [f"special{i}" for i in range(50)]
    texts = [" ".join(draws.choice(special if row % 10 == 0 else common, 20)) for row in range(1000)]
    target = [" ".join(draws.choice(special, 20)) for _ in range(50)]
    rows = select(enumerate(texts), log_ratio(ngram_counts(target), ngram_counts(texts)), 100, rng_key=1)
    assert (rows % 10 == 0).mean() > 0.95


def test_equal_weights_draw_every_text_alike() -> None:
    times = np.zeros(20)
    for seed in range(400):
        times[select(((row, "same") for row in range(20)), np.ones(BUCKETS), 5, rng_key=rng.key(seed))] += 1
    assert (np.abs(times - 100) < 4.5 * np.sqrt(75)).all()


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(DataError, match="words on both sides"):
        log_ratio(ngram_counts(["a"]), ngram_counts(["  "]))
    assert buckets("").tolist() == []
    assert select([(3, "")], np.ones(BUCKETS), 2, rng_key=1).tolist() == [3]
