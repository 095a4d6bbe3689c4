from pathlib import Path

import numpy as np
import pytest

from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.knn import knn_accuracy, label_free

RNG = np.random.default_rng(0)
CENTRES = np.eye(4, 16) * 3


def blobs(num: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num) % 4
    return (CENTRES[labels] + RNG.standard_normal((num, 16)) * 0.5).astype(np.float32), labels


def test_separable_classes_are_recognised_and_shuffled_labels_are_not() -> None:
    (bank, bank_labels), (queries, labels) = blobs(400), blobs(200)
    scores = knn_accuracy(bank, bank_labels, queries, labels, EvaluateConfig())
    assert list(scores) == ["knn", "knn_10", "knn_20", "knn_100", "knn_200"]
    assert scores["knn"] == max(scores.values()) > 0.98
    wrong = RNG.permutation(bank_labels)
    assert knn_accuracy(bank, wrong, queries, labels, EvaluateConfig())["knn"] < 0.5


def test_weighted_knn_equals_a_literal_vote() -> None:
    (bank, bank_labels), (queries, labels) = blobs(60), blobs(100)
    queries += 2 * RNG.standard_normal(queries.shape).astype(np.float32)
    config = EvaluateConfig(neighbours=(3, 7, 20), temperature=0.5)
    hits = dict.fromkeys(config.neighbours, 0)
    for query, label in zip(queries, labels, strict=True):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        for k in hits:
            votes = np.zeros(4)
            for index in np.argsort(-cosine)[:k]:
                votes[bank_labels[index]] += np.exp(cosine[index] / 0.5)
            hits[k] += votes.argmax() == label
    scores = {f"knn_{k}": count / 100 for k, count in hits.items()}
    assert knn_accuracy(bank, bank_labels, queries, labels, config) == {"knn": max(scores.values()), **scores}


def test_a_small_temperature_does_not_overflow() -> None:
    (bank, bank_labels), (queries, labels) = blobs(400), blobs(200)
    config = EvaluateConfig(neighbours=(10,), temperature=0.001)
    assert knn_accuracy(bank, bank_labels, queries, labels, config)["knn"] > 0.98


@pytest.mark.filterwarnings("error")
def test_a_memory_mapped_bank_in_small_blocks_votes_as_the_whole(tmp_path: Path) -> None:
    (bank, bank_labels), (queries, labels) = blobs(500), blobs(70)
    queries += 2 * RNG.standard_normal(queries.shape).astype(np.float32)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    config = EvaluateConfig(neighbours=(1, 5, 30))
    whole = knn_accuracy(bank, bank_labels, queries, labels, config)
    assert 0.3 < whole["knn_1"] < 0.95
    assert knn_accuracy(mapped, bank_labels, queries, labels, config, budget=20_000) == whole


def test_a_small_bank_and_one_class_are_no_error() -> None:
    bank, _ = blobs(3)
    zeros = np.zeros(3, dtype=np.int64)
    assert knn_accuracy(bank, zeros, bank, zeros, EvaluateConfig()) == {"knn": 1, "knn_3": 1}
    assert knn_accuracy(bank, zeros, bank, np.array([0, 0, 5]), EvaluateConfig())["knn"] == pytest.approx(2 / 3)


def test_collapse_shows_without_labels() -> None:
    spread, _ = blobs(300)
    collapsed = np.ones((300, 16), dtype=np.float32) + 1e-4 * spread
    healthy, sick = (label_free(features, rng_key=1) for features in (spread, collapsed))
    assert healthy["rankme"] > 8 > 1.5 > sick["rankme"]
    assert healthy["uniformity"] < sick["uniformity"]
    assert healthy["feature_std"] > 10 * sick["feature_std"]
