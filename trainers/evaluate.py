"""What frozen features are worth: with labels a weighted kNN and a linear probe, without them their rank and spread."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from curation import rng
from curation.quality import rankme, uniformity
from trainers.config import EvaluateConfig


def label_free(features: np.ndarray, *, stream: int) -> dict[str, float]:
    """Measures of features (N, D) that need no labels."""
    sample = features[rng.permute(stream, np.arange(min(2048, len(features))), len(features))]
    return {
        "rankme": rankme(sample),
        "uniformity": uniformity(sample),
        "feature_std": float(F.normalize(torch.from_numpy(sample), dim=1).std(0).mean() * sample.shape[1] ** 0.5),
    }


def knn_accuracy(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray, config: EvaluateConfig
) -> dict[str, float]:
    """Accuracy of a weighted kNN classifier, for each k and the best: {"knn": …, "knn_10": …, …}.

    Cosine similarity, votes exp(similarity / temperature) (Wu et al., CVPR 2018, section 3.4). `bank` (N, D) with
    `bank_labels` (N,) votes on `queries` (M, D).
    """
    reference = F.normalize(torch.from_numpy(bank), dim=1)
    targets = torch.from_numpy(bank_labels.astype(np.int64))
    num_classes = int(max(bank_labels.max(), labels.max())) + 1
    ks = sorted({min(k, len(bank)) for k in config.neighbours})
    predictions: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for block in F.normalize(torch.from_numpy(queries), dim=1).split(1024):
        similarity, neighbours = (block @ reference.T).topk(max(ks), dim=1)
        # Relative to the nearest, so that a small temperature cannot overflow.
        votes = ((similarity - similarity[:, :1]) / config.temperature).exp()
        for k in ks:
            ballot = torch.zeros(len(block), num_classes)
            ballot.scatter_add_(1, targets[neighbours[:, :k]], votes[:, :k])
            predictions[k].append(ballot.argmax(1))
    scores = {f"knn_{k}": float((torch.cat(predictions[k]).numpy() == labels).mean()) for k in ks}
    return {"knn": max(scores.values()), **scores}


def linear_probe_accuracy(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray) -> float:
    """Test accuracy of a multinomial logistic regression on standardised frozen features."""
    mean, std = bank.mean(0), bank.std(0) + 1e-6
    if len(np.unique(bank_labels)) < 2:
        return float((labels == bank_labels[0]).mean())
    probe = LogisticRegression(C=0.1, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((bank - mean) / std, bank_labels)
    return float(probe.score((queries - mean) / std, labels))
