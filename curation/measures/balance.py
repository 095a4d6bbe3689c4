"""Evenness of a histogram: of the sizes of clusters, or of the rows selected from each."""

import numpy as np


def total_variation_from_uniform(counts: np.ndarray) -> float:
    """Half the L1 distance between the histogram `counts` (C,), as shares, and the uniform one over its C bins.

    It is 0 if all bins are equal and near 1 if everything is in one of many bins.
    """
    share = counts / max(counts.sum(), 1)
    return float(np.abs(share - 1 / len(counts)).sum() / 2)


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the histogram `counts` (C,); 0 for one that is empty."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def size_entropy(sizes: np.ndarray) -> float:
    """Entropy of the cluster sizes (K,) as a share of the largest possible, ln K: 1 if all are equal."""
    return entropy(sizes) / float(np.log(len(sizes))) if len(sizes) > 1 else 1.0


def kl_from_uniform(counts: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats of the histogram `counts` (C,) from the uniform one.

    It is 0 if all bins are equal and ln C if everything is in one bin.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return max(float((share * np.log(share * len(counts))).sum()), 0.0)  # rounding could make it negative


def imbalance(sizes: np.ndarray) -> float:
    """Mean size of the cluster of a row over the mean of the cluster sizes (K,): 1 if all are equal, K if all rows are in one.

    It is K times the sum of the squared shares, which faiss calls the imbalance factor.
    """
    share = sizes / max(sizes.sum(), 1)
    return float(len(sizes) * (share * share).sum())


def share_empty(counts: np.ndarray) -> float:
    """Share of the `counts` (K,) that are 0, for example of clusters from which no row was selected."""
    return float(np.mean(counts == 0))
