"""Measures of a clustering, a selection or a set of embeddings."""

import numpy as np


def total_variation_from_uniform(counts: np.ndarray) -> float:
    """Half the L1 distance between the histogram `counts` (C,) and the uniform one over its C bins: 0 even, near 1 not."""
    share = counts / max(counts.sum(), 1)
    return float(np.abs(share - 1 / len(counts)).sum() / 2)


def size_entropy(sizes: np.ndarray) -> float:
    """Entropy of the cluster sizes (K,) as a share of the largest possible, ln K: 1 when all are equal."""
    share = sizes[sizes > 0] / sizes.sum()
    return float(-(share * np.log(share)).sum() / np.log(len(sizes))) if len(sizes) > 1 else 1.0


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
