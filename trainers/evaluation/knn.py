"""Scores of frozen features: with labels a weighted kNN, without labels rank and spread. Linear classifiers are in `probes`."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from curation.base import rng
from curation.measures.features import rankme, uniformity
from trainers.data.samples import SampleList
from trainers.evaluation.config import EvaluateConfig

_BYTES = 2**30
"""Largest number of bytes that a kNN holds on its device, queries and bank included."""


@dataclass(frozen=True)
class EvaluationSet:
    """M samples to evaluate encoders on, those of the pool first; the only place in this package that has true labels."""

    samples: SampleList
    num_pool: int
    """Number of samples of the pool, which come first; measures without labels use only these."""
    label: np.ndarray
    """(M,) int64: number of the class, -1 where the source has none."""
    is_query: np.ndarray
    """(M,) bool: labelled samples that the other labelled ones classify."""
    config: EvaluateConfig
    seed: int

    @cached_property
    def bank(self) -> np.ndarray:
        """(N,) int64: indices of the samples that vote."""
        return np.flatnonzero((self.label >= 0) & ~self.is_query)

    @cached_property
    def queries(self) -> np.ndarray:
        """(Q,) int64: indices of the samples that are classified."""
        return np.flatnonzero(self.is_query)

    @property
    def is_labelled(self) -> bool:
        """Whether there are both queries and samples that vote."""
        return len(self.bank) > 0 and len(self.queries) > 0

    def scores(self, features: np.ndarray, device: torch.device | None = None) -> dict[str, float]:
        """The scores of features (M, D) float32: those of `label_free`, and of the weighted kNN where there are labels."""
        result = label_free(features[: self.num_pool], rng_key=self.seed)
        if self.is_labelled:
            classes = len(np.unique(self.label[self.label >= 0]))
            result |= {"classes": classes, "labelled": len(self.bank), "queries": len(self.queries)}
            result |= knn_accuracy(*self.classified(features), self.config, device=device)
        return result

    def classified(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Split features (M, D) into bank (N, D), its labels, queries (Q, D) and their labels, as kNN and probes take them."""
        return features[self.bank], self.label[self.bank], features[self.queries], self.label[self.queries]


def label_free(features: np.ndarray, *, rng_key: int) -> dict[str, float]:
    """Measures of features (N, D) that need no labels; `rng_key` is the random key of the sample they are computed on."""
    sample = features[rng.permute(rng_key, np.arange(min(2048, len(features))), len(features))]
    return {
        "rankme": rankme(sample),
        "uniformity": uniformity(sample),
        "feature_std": float(F.normalize(torch.from_numpy(sample), dim=1).std(0).mean() * sample.shape[1] ** 0.5),
    }


def knn_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    config: EvaluateConfig,
    *,
    device: torch.device | None = None,
    budget: int = _BYTES,
) -> dict[str, float]:
    """Accuracy of a weighted kNN classifier, for each k and the best: {"knn": …, "knn_10": …, …}.

    Cosine similarity, votes exp(similarity / temperature) (Wu et al., CVPR 2018, section 3.4). `bank` (N, D) with
    `bank_labels` (N,) votes on `queries` (M, D), both float32; k is at most N. The bank may be a memory map: it is read in
    blocks, so that at most `budget` bytes are held beside it.
    """
    num_classes = int(max(bank_labels.max(), labels.max())) + 1
    ks = sorted({min(k, len(bank)) for k in config.neighbours})
    # Bytes of a query: its row, its best neighbours so far and those of a block, and its ballot. Bytes of a bank row: its
    # values, those of the unit-length copy, and its similarities.
    query_bytes = 4 * bank.shape[1] * 2 + 12 * 3 * ks[-1] + 8 * num_classes
    queries_at_once = max(1, min(len(queries), budget // 2 // query_bytes))
    row_bytes = 4 * bank.shape[1] * 2 + 4 * queries_at_once
    rows_at_once = max(ks[-1], budget // 2 // row_bytes)
    targets = torch.from_numpy(bank_labels.astype(np.int64)).to(device)
    hits = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), queries_at_once):
        chunk = slice(start, start + queries_at_once)
        similarity, neighbours = _nearest(bank, queries[chunk], ks[-1], rows_at_once, device)
        # Relative to the nearest, so that a small temperature cannot overflow, and as whole numbers, whose sum on a GPU does
        # not depend on the order.
        votes = ((similarity - similarity[:, :1]).double() / config.temperature).exp().mul_(2.0**40).long()
        ballot = torch.zeros(len(votes), num_classes, dtype=torch.int64, device=device)
        truth = torch.from_numpy(labels[chunk]).to(device)
        for nearer, k in zip([0, *ks], ks, strict=False):
            ballot.scatter_add_(1, targets[neighbours[:, nearer:k]], votes[:, nearer:k])
            hits[k] += int((ballot.argmax(1) == truth).sum())
    scores = {f"knn_{k}": hits[k] / len(queries) for k in ks}
    return {"knn": max(scores.values()), **scores}


def _nearest(
    bank: np.ndarray, queries: np.ndarray, k: int, rows_at_once: int, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Cosine similarities, falling, and indices (M, k) of the k rows of `bank` (N, D) nearest to each of `queries` (M, D)."""
    directions = F.normalize(torch.tensor(queries, device=device), dim=1)
    best = torch.empty(len(directions), 0, device=device)
    index = torch.empty(len(directions), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), rows_at_once):
        block = F.normalize(torch.tensor(bank[start : start + rows_at_once], device=device), dim=1)
        near, which = (directions @ block.T).topk(min(k, len(block)), dim=1)
        best, kept = torch.cat([best, near], dim=1).topk(min(k, best.shape[1] + near.shape[1]), dim=1)
        index = torch.cat([index, which + start], dim=1).gather(1, kept)
    return best, index
