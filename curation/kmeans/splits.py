"""Splitting of every cluster into many: the way to more clusters than all rows can be compared with.

Vo et al. 2024 make their ten million finest clusters in this way: k-means to a hundred thousand clusters, then k-means inside
each of them.
"""

from itertools import islice

import numpy as np
import torch

from curation.base import rng
from curation.base.collectives import Collectives, place_among
from curation.base.device import default_device
from curation.base.journal import Journal
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import EmbeddingSource, SharedSource
from curation.kmeans.grouped import grouped_kmeans, grouped_nearest
from curation.kmeans.lloyd import KMeansResult

_SAMPLE_PER_CLUSTER = 20
_BATCH_BYTES = 2**30
"""Row data that one worker holds at once."""


def split_clusters(
    source: SharedSource,
    local_rows: EmbeddingSource,
    clusters: KMeansResult,
    splits: int,
    *,
    rng_key: int,
    spherical: bool,
    workers: Collectives,
    journal: Journal,
) -> KMeansResult:
    """Split each of the K `clusters` by k-means on a sample of its rows into `splits` parts; fewer if fewer rows differ.

    `source` is the whole of the rows, `local_rows` this worker's share, whose rows `clusters` has assignments for. A row stays
    inside its cluster and goes to the nearest of the parts. `rng_key` is the random key (`rng.key`).
    """
    device = default_device()
    if saved := journal.load("splits"):
        centroids, offsets = saved["centroids"], saved["offsets"]
    else:
        centroids, offsets = _parts(source, local_rows, clusters, splits, rng_key, workers, device)
        if spherical:
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        journal.save("splits", centroids=centroids, offsets=offsets)
    assignment = np.empty(local_rows.num_rows, dtype=np.int64)
    squared = np.empty(local_rows.num_rows, dtype=np.float32)
    on_device = torch.from_numpy(centroids).to(device)
    for first, block in read_ahead(local_rows):
        span = slice(first, first + len(block))
        nearest = grouped_nearest(block.to(device).float(), clusters.local_assignment[span], on_device, offsets)
        assignment[span], squared[span] = (array.cpu().numpy() for array in nearest)
    sizes = workers.sum(np.bincount(assignment, minlength=len(centroids)))
    occupied = sizes > 0
    return KMeansResult(
        centroids=centroids[occupied],
        local_assignment=(np.cumsum(occupied) - 1)[assignment].astype(np.int32),
        local_squared_distance=squared,
        sizes=sizes[occupied],
        inertia=[float(workers.sum(squared.sum(dtype=np.float64)[None])[0])],
    )


def _parts(
    source: SharedSource,
    local_rows: EmbeddingSource,
    clusters: KMeansResult,
    splits: int,
    rng_key: int,
    workers: Collectives,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of all parts and offsets (K + 1,): cluster k has the parts `offsets[k]` to `offsets[k + 1]`.

    Workers take turns with batches of clusters. The division into batches does not depend on the number of workers.
    """
    sample_sizes = np.minimum(clusters.sizes, _SAMPLE_PER_CLUSTER * splits)
    first, _ = place_among(workers, local_rows.num_rows)
    # A row is in the sample if its ticket is below the limit of its cluster; in a small cluster all rows are.
    limit = np.where(sample_sizes < clusters.sizes, sample_sizes / clusters.sizes * 2.0**32, 2.0**32)
    tickets = rng.tickets(rng.key(rng_key, "sample"), first, local_rows.num_rows)
    sampled = np.flatnonzero(tickets < limit[clusters.local_assignment])
    sampled = sampled[np.argsort(clusters.local_assignment[sampled], kind="stable")]
    cluster = clusters.local_assignment[sampled]
    batch = np.cumsum(sample_sizes) * (4 * source.dim) // _BATCH_BYTES
    starts = np.flatnonzero(np.diff(batch, prepend=-1))
    batches = iter(zip(starts, [*starts[1:], len(sample_sizes)], strict=True))
    centroids: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    while turn := list(islice(batches, workers.size)):
        local_centroids: np.ndarray | None = None
        local_counts: np.ndarray | None = None
        for worker, (low, high) in enumerate(turn):
            in_batch = slice(*np.searchsorted(cluster, [low, high]))
            rows = np.concatenate(workers.gather(sampled[in_batch] + first))
            owner = np.concatenate(workers.gather(cluster[in_batch]))
            if worker == workers.rank:
                order = np.argsort(owner, kind="stable")
                sizes = np.bincount(owner - low, minlength=high - low)
                offsets = np.concatenate([[0], np.cumsum(sizes)])
                values = torch.from_numpy(source.take(rows[order]).astype(np.float32)).to(device)
                num_parts = np.full(high - low, splits)
                inside = rng.key(rng_key, "inside")
                parts = grouped_kmeans(values, offsets, num_parts, rng_key=inside, first_group=int(low))
                local_centroids, local_counts = parts.centroids.cpu().numpy(), np.diff(parts.offsets)
        for worker in range(len(turn)):
            centroids.append(workers.broadcast(local_centroids, worker))
            counts.append(workers.broadcast(local_counts, worker))
    return np.concatenate(centroids), np.concatenate([[0], np.cumsum(np.concatenate(counts))])
