import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from curation.base import rng
from trainers.evaluation.probes import REGULARISATIONS, fit_logistic, fit_sgd, probe_accuracy
from trainers.schedules import cosine


def blobs(num: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num) % 4
    noise = np.random.default_rng(num).standard_normal((num, 12)) * spread
    return (np.eye(4, 12)[labels] * 3 + noise).astype(np.float32), labels


def with_ones(rows: np.ndarray) -> torch.Tensor:
    return F.pad(torch.from_numpy(rows), (0, 1), value=1.0)


def test_classes_are_recognised_and_shuffled_labels_are_not() -> None:
    (bank, known), (queries, labels) = blobs(400, 0.5), blobs(200, 0.5)
    found = probe_accuracy(bank, known, queries, labels, rng_key=1)
    assert min(found["linear"], found["logistic"]) > 0.98
    assert found == probe_accuracy(bank, known, queries, labels, rng_key=1)
    wrong = probe_accuracy(bank, np.random.default_rng(0).permutation(known), queries, labels, rng_key=1)
    assert max(wrong["linear"], wrong["logistic"]) < 0.5


def test_logistic_regressions_at_once_are_those_of_scikit_learn() -> None:
    bank, known = blobs(300, 1.5)
    fitted = fit_logistic(with_ones(bank), torch.from_numpy(known), torch.tensor(REGULARISATIONS), num_classes=4).numpy()
    for regularisation, ours in zip(REGULARISATIONS, fitted, strict=True):
        theirs = LogisticRegression(C=regularisation, tol=1e-8, max_iter=5000).fit(bank.astype(np.float64), known)
        expected = np.c_[theirs.coef_, theirs.intercept_]
        # The same shift of all classes changes no probability.
        assert np.allclose(ours - ours.mean(0), expected - expected.mean(0), atol=2e-3 * np.abs(expected).max())
        predicted = (with_ones(bank).numpy() @ ours.T).argmax(1)
        assert (predicted == theirs.predict(bank)).mean() > 0.99


def test_sgd_at_many_rates_is_torchs_at_each() -> None:
    bank, known = blobs(600, 1.5)
    x, y, rates = with_ones(bank), torch.from_numpy(known), [0.001, 0.1]
    ours = fit_sgd(x, y, torch.tensor(rates), num_classes=4, rng_key=5)
    for rate, weights in zip(rates, ours, strict=True):
        layer = torch.zeros(4, 13, requires_grad=True)
        optimizer = torch.optim.SGD([layer], lr=rate, momentum=0.9)
        for step in range(334 * 3):  # at least a thousand
            epoch, batch = divmod(step, 3)
            rows = np.argsort(rng.tickets(rng.key(5, "batches", epoch), 0, 600), kind="stable")[256 * batch :][:256]
            optimizer.param_groups[0]["lr"] = cosine(step, 334 * 3, rate, 0.0)
            optimizer.zero_grad()
            F.cross_entropy(x[rows] @ layer.T, y[rows]).backward()
            optimizer.step()
        assert torch.allclose(weights, layer, rtol=1e-3, atol=1e-4)


def test_noise_is_regularised_away() -> None:
    draws = np.random.default_rng(0)
    noise = draws.standard_normal((600, 100)).astype(np.float32)
    labels = (draws.random(600) < 0.3).astype(np.int64)
    found = probe_accuracy(noise[:300], labels[:300], noise[300:], labels[300:], rng_key=1)
    assert found["logistic_c"] <= 1e-3
    assert found["logistic"] == pytest.approx((labels[300:] == 0).mean(), abs=0.02)


def test_a_fine_difference_gets_the_rate_and_the_freedom_it_takes() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 3000)
    common = 20 * draws.standard_normal(3000)  # in both columns; only their difference tells the classes apart
    rows = np.stack([labels + common, common], axis=1) + 0.1 * draws.standard_normal((3000, 2))
    rows = rows.astype(np.float32)
    found = probe_accuracy(rows[:2000], labels[:2000], rows[2000:], labels[2000:], rng_key=1)
    assert found["linear_rate"] == 1
    assert found["linear"] > 0.95
    assert found["logistic_c"] >= 1
    assert found["logistic"] > 0.95


def test_queries_decide_on_nothing() -> None:
    (bank, known), (queries, labels) = blobs(300, 1.5), blobs(200, 1.5)
    honest = probe_accuracy(bank, known, queries, labels, rng_key=1)
    other = probe_accuracy(bank, known, queries[::-1].copy() * 5, (labels + 1) % 4, rng_key=1)
    assert [honest[name] for name in ("linear_rate", "logistic_c")] == [other[name] for name in ("linear_rate", "logistic_c")]
    assert honest["linear"] > other["linear"]


@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_tiny_bank_of_one_class_recognises_that_class_only(num: int) -> None:
    rows, _ = blobs(4, 0.5)
    found = probe_accuracy(rows[:num], np.full(num, 7), rows, np.array([7, 3, 7, 9]), rng_key=1)
    assert found["linear"] == found["logistic"] == 0.5
