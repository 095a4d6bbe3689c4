"""Spread of embeddings: how well they fill their space, keep clusters apart, and are covered by a selection."""

from typing import NamedTuple

import numpy as np

from curation.base import rng
from curation.embeddings.source import EmbeddingSource, Subset
from curation.measures.balance import entropy


def rankme(embeddings: np.ndarray) -> float:
    """Effective rank of embeddings (N, D): exp of the entropy of their singular values.

    Garrido et al., "RankMe", ICML 2023, equation 2. It lies between 1 (collapsed) and min(N, D).
    """
    singular = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def uniformity(embeddings: np.ndarray) -> float:
    """How evenly unit-length embeddings (N, D) cover the sphere: log mean exp(-2 |x - y|²) over pairs; lower is better.

    Wang and Isola, "Understanding Contrastive Representation Learning", ICML 2020. The cost is quadratic in N: pass a
    sample.
    """
    x = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    squared = 2 - 2 * (x @ x.T)[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-2 * squared.astype(np.float64)).mean()))


def vendi_score(source: EmbeddingSource) -> float:
    """Effective number of distinct rows (N, D) by cosine similarity: between 1 and min(N, D). Rows of zeros count for nothing.

    Friedman and Dieng, "The Vendi Score", TMLR 2023: exp of the entropy of the eigenvalues of the N x N similarities over
    N. The D x D matrix of the dual form has the same eigenvalues, and can be summed block by block.
    """
    products = np.zeros((source.dim, source.dim))
    for _, block in source.blocks():
        rows = block.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        products += rows.T @ rows
    return float(np.exp(entropy(np.maximum(np.linalg.eigvalsh(products), 0))))


def silhouette(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of rows (M, D) in clusters `labels` (M,) by Euclidean distance: near 1 if clusters are well apart.

    Rousseeuw, "Silhouettes", Journal of Computational and Applied Mathematics 1987. It lies between -1 and 1. A row that is
    alone in its cluster counts 0, as in the paper, and so does every row if there is only one cluster. The cost is quadratic
    in M: pass a sample with several rows to a cluster.
    """
    from sklearn.metrics import silhouette_score

    num_clusters = len(np.unique(labels))
    if num_clusters in (1, len(rows)):
        return 0.0
    return float(silhouette_score(rows.astype(np.float64), labels))


class Coverage(NamedTuple):
    """Distances of the rows of a pool to the nearest selected row."""

    mean: float
    p95: float
    """95th percentile of the distances."""


def coverage(source: EmbeddingSource, selected: np.ndarray, *, rng_key: int, max_rows: int = 2000) -> Coverage:
    """Euclidean distance from rows of `source` to the nearest of the rows at ascending indices `selected` (S,).

    It is measured for `max_rows` random rows (`rng_key` is the random key), to all selected rows, which are streamed.
    Raises ValueError if nothing is selected.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    if len(selected) == 0:
        raise ValueError("nothing is selected, so no distance to it can be measured")
    drawn = rng.permute(rng_key, np.arange(min(max_rows, source.num_rows)), source.num_rows)
    sample = source.take(np.sort(drawn)).astype(np.float32)
    nearest = np.full(len(sample), np.inf)
    for _, block in Subset(source, selected).blocks():
        nearest = np.minimum(nearest, pairwise_distances_argmin_min(sample, block.astype(np.float32))[1])
    return Coverage(float(nearest.mean()), float(np.percentile(nearest, 95)))
