from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.embeddings.source import ArraySource
from curation.kmeans.grouped import grouped_kmeans
from curation.kmeans.lloyd import KMeans, KMeansOptions


def blobs(sizes: list[int], dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Groups far from one another, each of three blobs."""
    draws = np.random.default_rng(seed)
    groups = [
        100 * draws.standard_normal(dim) + 5 * np.eye(3, dim)[draws.integers(0, 3, size)] + draws.normal(0, 0.3, (size, dim))
        for size in sizes
    ]
    return torch.from_numpy(np.concatenate(groups).astype(np.float32)), np.cumsum([0, *sizes])


def test_every_group_is_clustered_as_well_as_alone() -> None:
    sizes = [40, 500, 3, 90, 41, 333]
    rows, offsets = blobs(sizes)
    result = grouped_kmeans(rows, offsets, np.full(6, 3), rng_key=1)
    assert result.offsets.tolist() == [0, 3, 6, 9, 12, 15, 18]
    for group, (start, end) in enumerate(pairwise(offsets)):
        label = result.label[start:end]
        assert ((label >= result.offsets[group]) & (label < result.offsets[group + 1])).all()
        centroids = result.centroids.double()[result.offsets[group] : result.offsets[group + 1]]
        exact = ((rows[start:end, None].double() - centroids) ** 2).sum(2)
        assert torch.equal(exact.argmin(1) + result.offsets[group], label)
        assert torch.allclose(exact.min(1).values.float(), result.squared_distance[start:end], atol=0.05)
        alone = KMeans(ArraySource(rows[start:end].numpy()), 3, rng_key=1, options=KMeansOptions(tolerance=0)).run()
        assert exact.min(1).values.sum() <= alone.inertia[-1] * 1.01 + 1e-3


def test_centroids_are_the_means_of_their_rows() -> None:
    rows, offsets = blobs([60, 200, 75])
    result = grouped_kmeans(rows, offsets, np.array([3, 3, 3]), rng_key=1, max_iterations=100)
    for cluster in range(len(result.centroids)):
        assert torch.allclose(rows[result.label == cluster].mean(0), result.centroids[cluster], atol=1e-3)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=12),
    st.integers(0, 10**6),
)
def test_any_groups_give_as_many_clusters_as_they_can(groups: list[tuple[int, int, int]], seed: int) -> None:
    draws = np.random.default_rng(seed)
    parts = [draws.integers(0, values, (size, 2)).astype(np.float32) for size, _, values in groups]
    rows, sizes = np.concatenate(parts), np.array([size for size, _, _ in groups])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    result = grouped_kmeans(
        torch.from_numpy(rows), offsets, np.array([k for _, k, _ in groups]), rng_key=seed, max_iterations=60
    )
    distinct = [len(Counter(map(tuple, part.tolist()))) for part in parts]
    counts = np.diff(result.offsets)
    assert (counts <= np.minimum([k for _, k, _ in groups], distinct)).all()
    assert ((counts > 0) == (sizes > 0)).all()
    cluster_sizes = np.bincount(result.label.numpy(), minlength=len(result.centroids))
    assert (cluster_sizes > 0).all()
    for part, count, (_, num_clusters, _) in zip(parts, counts, groups, strict=True):
        if len(part) and num_clusters >= len(np.unique(part, axis=0)):
            assert count == len(np.unique(part, axis=0))


def test_a_groups_result_does_not_depend_on_its_neighbours() -> None:
    rows, offsets = blobs([40, 500, 44, 90])
    together = grouped_kmeans(rows, offsets, np.array([2, 5, 3, 3]), rng_key=1)
    shifted = grouped_kmeans(
        torch.cat([rows, rows[:44] * 2]), np.append(offsets, len(rows) + 44), np.array([2, 5, 3, 3, 3]), rng_key=1
    )
    assert torch.equal(together.label, shifted.label[: len(rows)])
    assert torch.allclose(together.centroids, shifted.centroids[: len(together.centroids)], atol=1e-5)
