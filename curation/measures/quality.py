"""Measures of a clustering, of two clusterings of the same rows, of a selection, or of a set of embeddings."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from curation.base import rng
from curation.embeddings.source import EmbeddingSource, Subset

_BLOCK = 2**22
"""Rows looked at in one piece."""
_EXACT_TERMS = 10**8
"""Terms of an expected mutual information that are added up one by one: a few seconds."""


def total_variation_from_uniform(counts: np.ndarray) -> float:
    """Half the L1 distance between the histogram `counts` (C,) and the uniform one over its C bins: 0 even, near 1 not."""
    share = counts / max(counts.sum(), 1)
    return float(np.abs(share - 1 / len(counts)).sum() / 2)


def size_entropy(sizes: np.ndarray) -> float:
    """Entropy of the cluster sizes (K,) as a share of the largest possible, ln K: 1 when all are equal."""
    return _entropy(sizes) / float(np.log(len(sizes))) if len(sizes) > 1 else 1.0


def kl_from_uniform(counts: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats of the histogram `counts` (C,) from the uniform one: 0 even, ln C all in one bin."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return max(float((share * np.log(share * len(counts))).sum()), 0.0)  # not below for rounding


def imbalance(sizes: np.ndarray) -> float:
    """Mean size of the cluster of a row over the mean of the cluster sizes (K,): 1 when all are equal, K all in one.

    K times the sum of the squared shares, which faiss calls the imbalance factor.
    """
    share = sizes / max(sizes.sum(), 1)
    return float(len(sizes) * (share * share).sum())


def share_empty(counts: np.ndarray) -> float:
    """Share of the `counts` (K,) that are 0: of cluster sizes the empty ones, of selected rows the clusters not covered."""
    return float(np.mean(counts == 0))


def silhouette(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of rows (M, D) in clusters `labels` (M,) by Euclidean distance: near 1 if they are well apart.

    Rousseeuw, "Silhouettes", Journal of Computational and Applied Mathematics 1987. Between -1 and 1. A row that is alone
    in its cluster counts 0, as in the paper, and so does every row if there is only one cluster. Quadratic in M: pass a
    sample, with several rows to a cluster.
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
    """Their 95th percentile."""


def coverage(source: EmbeddingSource, selected: np.ndarray, *, rng_key: int, max_rows: int = 2000) -> Coverage:
    """How far the rows of `source` are from the nearest of those at ascending indices `selected` (S,), at least one.

    Euclidean distance. It is measured for `max_rows` random rows (`rng_key` is the random key), for each among all that are
    selected, which are streamed.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    if len(selected) == 0:
        raise ValueError("nothing is selected, so no distance to it can be measured")
    drawn = rng.permute(rng_key, np.arange(min(max_rows, source.num_rows)), source.num_rows)
    asking = source.take(np.sort(drawn)).astype(np.float32)
    nearest = np.full(len(asking), np.inf)
    for _, block in Subset(source, selected).blocks():
        nearest = np.minimum(nearest, pairwise_distances_argmin_min(asking, block.astype(np.float32))[1])
    return Coverage(float(nearest.mean()), float(np.percentile(nearest, 95)))


def contingency(first: np.ndarray, second: np.ndarray) -> csr_array:
    """How many rows are in cluster i of `first` (N,) and j of `second` (N,): (K, L) int64. Labels count from 0."""
    shape = tuple(int(labels.max(initial=-1)) + 1 for labels in (first, second))
    table = csr_array(shape, dtype=np.int64)
    for start in range(0, len(first), _BLOCK):
        pairs = first[start : start + _BLOCK], second[start : start + _BLOCK]
        table = table + coo_array((np.ones(len(pairs[0]), dtype=np.int64), pairs), shape=shape).tocsr()
    return table


def nmi(table: csr_array) -> float:
    """Normalised mutual information of two clusterings with this `contingency`: 0 independent, 1 the same.

    Mutual information over the mean of the two entropies. It is biased: it rises with the number of clusters.
    """
    information, entropy = _information(table)
    return information / entropy if entropy > 0 else 1.0


def ami(table: csr_array, *, rng_key: int) -> float:
    """Adjusted mutual information of two clusterings with this `contingency`: 0 as expected by chance, 1 the same.

    Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 2010, with the mean of the two
    entropies. What is expected by chance takes up to N min(K, L) terms. Where these are too many, it is the information of
    one random matching of the rows (`rng_key` is the random key), whose mean it is and which hardly varies among many rows.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    information, entropy = _information(table)
    sizes, others = table.sum(axis=1), table.sum(axis=0)
    if sizes.sum() * min(table.shape) <= _EXACT_TERMS:
        expected = expected_mutual_information(table[sizes > 0][:, others > 0], int(sizes.sum()))
    else:
        rows, partners = (np.repeat(np.arange(len(n), dtype=np.int32), n) for n in (sizes, others))
        expected, _ = _information(contingency(rows, rng.generator(rng_key).permutation(partners)))
    # If chance alone reaches the most there can be, both are one cluster, or both have a cluster for every row.
    return (information - expected) / (entropy - expected) if entropy - expected > 1e-12 else 1.0


def ari(table: csr_array) -> float:
    """Adjusted Rand index of two clusterings with this `contingency`: 0 as expected by chance, 1 the same.

    Hubert and Arabie, "Comparing Partitions", Journal of Classification 1985, equation 5.
    """
    counts = (table.data, table.sum(axis=1), table.sum(axis=0), table.sum())
    together, one, other, total = (int((n * (n - 1) // 2).sum()) for n in counts)  # pairs of rows
    expected = one * other / max(total, 1)
    most = (one + other) / 2
    return (together - expected) / (most - expected) if most > expected else 1.0


def churn(table: csr_array) -> float:
    """Share of the rows that changed cluster between two clusterings with this `contingency`, old by new: 0 none, near 1 all.

    Old clusters are matched to new ones, one to one, so that as many rows as possible are in the cluster their old one is
    matched to. The others changed; so did all rows of an old cluster that is left over.
    """
    # A partner of its own for every old cluster makes sure that there is a full matching; one more row everywhere, since
    # zeros would not count as edges, changes nothing: every old cluster has one edge.
    edges = table.astype(np.float64)
    edges.data += 1
    edges = hstack([edges, eye_array(len(edges.indptr) - 1)], format="csr")
    old, new = min_weight_full_bipartite_matching(edges, maximize=True)
    return 1 - float(edges[old, new].sum() - len(old)) / max(int(table.sum()), 1)


def _information(table: csr_array) -> tuple[float, float]:
    """Mutual information of two clusterings and the mean of their entropies, in nats."""
    one, other, both = (_entropy(counts) for counts in (table.sum(axis=1), table.sum(axis=0), table.data))
    return max(one + other - both, 0.0), (one + other) / 2


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def rankme(embeddings: np.ndarray) -> float:
    """Effective rank of embeddings (N, D): exp of the entropy of their singular values.

    Garrido et al., "RankMe", ICML 2023, equation 2. Between 1 (collapsed) and min(N, D).
    """
    singular = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def uniformity(embeddings: np.ndarray) -> float:
    """How evenly unit-length embeddings (N, D) cover the sphere: log mean exp(-2 |x - y|²) over pairs; lower is better.

    Wang and Isola, "Understanding Contrastive Representation Learning", ICML 2020. Quadratic in N: pass a sample.
    """
    x = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    squared = 2 - 2 * (x @ x.T)[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-2 * squared.astype(np.float64)).mean()))


def vendi_score(source: EmbeddingSource) -> float:
    """Effective number of unlike rows (N, D) by cosine similarity: between 1 and min(N, D). Rows of zeros count for nothing.

    Friedman and Dieng, "The Vendi Score", TMLR 2023: exp of the entropy of the eigenvalues of the N x N similarities over
    N. Those of the D x D matrix of the dual form are the same, and it is summed up block by block.
    """
    products = np.zeros((source.dim, source.dim))
    for _, block in source.blocks():
        rows = block.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        products += rows.T @ rows
    return float(np.exp(_entropy(np.maximum(np.linalg.eigvalsh(products), 0))))
