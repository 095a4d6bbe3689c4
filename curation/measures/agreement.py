"""Agreement of two clusterings of the same rows."""

import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from curation.base import rng
from curation.measures.balance import entropy

_BLOCK = 2**22
"""Rows counted at once."""
_EXACT_TERMS = 10**8
"""Terms of an expected mutual information that are summed exactly: a few seconds."""


def contingency(first: np.ndarray, second: np.ndarray) -> csr_array:
    """(K, L) int64: the number of rows in cluster i of `first` (N,) and cluster j of `second` (N,). Labels count from 0."""
    shape = tuple(int(labels.max(initial=-1)) + 1 for labels in (first, second))
    table = csr_array(shape, dtype=np.int64)
    for start in range(0, len(first), _BLOCK):
        pairs = first[start : start + _BLOCK], second[start : start + _BLOCK]
        table = table + coo_array((np.ones(len(pairs[0]), dtype=np.int64), pairs), shape=shape).tocsr()
    return table


def nmi(table: csr_array) -> float:
    """Normalised mutual information of two clusterings with this `contingency`: 0 if independent, 1 if the same.

    Mutual information over the mean of the two entropies. It is biased: it rises with the number of clusters.
    """
    information, mean_entropy = _information(table)
    return information / mean_entropy if mean_entropy > 0 else 1.0


def ami(table: csr_array, *, rng_key: int) -> float:
    """Adjusted mutual information of two clusterings with this `contingency`: 0 if as expected by chance, 1 if the same.

    Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 2010, with the mean of the two
    entropies. The information expected by chance is a sum of up to N min(K, L) terms. Where these are too many, it is
    estimated by the information of one random matching of the rows (`rng_key` is the random key), which hardly varies where
    rows are many.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    information, mean_entropy = _information(table)
    sizes, others = table.sum(axis=1), table.sum(axis=0)
    if sizes.sum() * min(table.shape) <= _EXACT_TERMS:
        expected = expected_mutual_information(table[sizes > 0][:, others > 0], int(sizes.sum()))
    else:
        rows, partners = (np.repeat(np.arange(len(n), dtype=np.int32), n) for n in (sizes, others))
        expected, _ = _information(contingency(rows, rng.generator(rng_key).permutation(partners)))
    # If the expected information is the largest possible, both have one cluster only, or both have a cluster for every row.
    return (information - expected) / (mean_entropy - expected) if mean_entropy - expected > 1e-12 else 1.0


def ari(table: csr_array) -> float:
    """Adjusted Rand index of two clusterings with this `contingency`: 0 if as expected by chance, 1 if the same.

    Hubert and Arabie, "Comparing Partitions", Journal of Classification 1985, equation 5.
    """
    counts = (table.data, table.sum(axis=1), table.sum(axis=0), table.sum())
    together, one, other, total = (int((n * (n - 1) // 2).sum()) for n in counts)  # pairs of rows
    expected = one * other / max(total, 1)
    largest = (one + other) / 2
    return (together - expected) / (largest - expected) if largest > expected else 1.0


def churn(table: csr_array) -> float:
    """Share of the rows that changed cluster between two clusterings with this `contingency`, old by new.

    Old clusters are matched to new ones, one to one, so that as many rows as possible are in the cluster their old one is
    matched to. The other rows changed; so did all rows of an old cluster without a match. 0 if no row changed, near 1 if all.
    """
    # One spare partner for every old cluster makes sure that a full matching exists. Each entry gets one more row, because
    # zeros would not count as edges; that changes nothing, since every old cluster is matched by one edge.
    edges = table.astype(np.float64)
    edges.data += 1
    edges = hstack([edges, eye_array(len(edges.indptr) - 1)], format="csr")
    old, new = min_weight_full_bipartite_matching(edges, maximize=True)
    return 1 - float(edges[old, new].sum() - len(old)) / max(int(table.sum()), 1)


def _information(table: csr_array) -> tuple[float, float]:
    """Mutual information of two clusterings and the mean of their entropies, in nats."""
    one, other, both = (entropy(counts) for counts in (table.sum(axis=1), table.sum(axis=0), table.data))
    return max(one + other - both, 0.0), (one + other) / 2
