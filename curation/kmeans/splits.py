"""Splitting every cluster into many: the way to more clusters than all rows can be compared with.

Vo et al. 2024 make their ten million finest clusters so: k-means to a hundred thousand, then k-means inside each of them.
"""

from itertools import islice

import numpy as np
import torch

from curation.base import rng
from curation.base.collectives import Collectives, place_among
from curation.base.journal import Journal
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import EmbeddingSource, SharedSource
from curation.kmeans.grouped import grouped_kmeans, grouped_nearest
from curation.kmeans.lloyd import KMeansResult

_SAMPLE_PER_CLUSTER = 20
_BATCH_BYTES = 2**30
"""Rows that one worker holds at once."""


def split_clusters(
    source: SharedSource,
    mine: EmbeddingSource,
    found: KMeansResult,
    splits: int,
    *,
    rng_key: int,
    spherical: bool,
    workers: Collectives,
    journal: Journal,
    device: torch.device,
) -> KMeansResult:
    """Each of the K clusters `found` in at most `splits`, by k-means on a sample of its rows; fewer if fewer rows differ.

    `source` is the whole of the rows, `mine` this worker's share, whose rows `found` has labels for. A row stays in the
    cluster it is in and goes to the nearest of its parts. Margins are not known afterwards: they are NaN.
    """
    if saved := journal.load("splits"):
        centroids, offsets = saved["centroids"], saved["offsets"]
    else:
        centroids, offsets = _parts(source, mine, found, splits, rng_key, workers, device)
        if spherical:
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        journal.save("splits", centroids=centroids, offsets=offsets)
    assignment = np.empty(mine.num_rows, dtype=np.int64)
    squared = np.empty(mine.num_rows, dtype=np.float32)
    every = torch.from_numpy(centroids).to(device)
    for first, block in read_ahead(mine):
        place = slice(first, first + len(block))
        label, away = grouped_nearest(block.to(device).float(), found.assignment[place], every, offsets)
        assignment[place], squared[place] = label.cpu().numpy(), away.cpu().numpy()
    sizes = workers.sum(np.bincount(assignment, minlength=len(centroids)))
    occupied = sizes > 0
    return KMeansResult(
        centroids=centroids[occupied],
        assignment=(np.cumsum(occupied) - 1)[assignment].astype(np.int32),
        squared_distance=squared,
        margin=np.full(mine.num_rows, np.nan, dtype=np.float32),
        sizes=sizes[occupied],
        inertia=[float(workers.sum(squared.sum(dtype=np.float64)[None])[0])],
    )


def _parts(
    source: SharedSource,
    mine: EmbeddingSource,
    found: KMeansResult,
    splits: int,
    rng_key: int,
    workers: Collectives,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of all parts, cluster after cluster, and offsets (K + 1,) that say which are whose.

    Workers take turns with batches of clusters; how these are cut does not depend on how many workers there are.
    """
    wanted = np.minimum(found.sizes, _SAMPLE_PER_CLUSTER * splits)
    first, _ = place_among(workers, mine.num_rows)
    # A row is in the sample if its ticket is small enough for its cluster: all rows of a cluster that is small.
    limit = np.where(wanted < found.sizes, wanted / found.sizes * 2.0**32, 2.0**32)
    sampled = np.flatnonzero(rng.tickets(rng.key(rng_key, "sample"), first, mine.num_rows) < limit[found.assignment])
    sampled = sampled[np.argsort(found.assignment[sampled], kind="stable")]
    cluster = found.assignment[sampled]
    batch = np.cumsum(wanted) * (4 * source.dim) // _BATCH_BYTES
    starts = np.flatnonzero(np.diff(batch, prepend=-1))
    turns = iter(zip(starts, [*starts[1:], len(wanted)], strict=True))
    centroids: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    while turn := list(islice(turns, workers.size)):
        made, made_counts = np.empty((0, source.dim), np.float32), np.empty(0, np.int64)
        for worker, (low, high) in enumerate(turn):
            here = slice(*np.searchsorted(cluster, [low, high]))
            rows = np.concatenate(workers.gather(sampled[here] + first))
            owner = np.concatenate(workers.gather(cluster[here]))
            if worker == workers.rank:
                order = np.argsort(owner, kind="stable")
                sizes = np.bincount(owner - low, minlength=high - low)
                offsets = np.concatenate([[0], np.cumsum(sizes)])
                values = torch.from_numpy(source.take(rows[order]).astype(np.float32)).to(device)
                wished = np.full(high - low, splits)
                parts = grouped_kmeans(values, offsets, wished, rng_key=rng.key(rng_key, "inside"), first_group=int(low))
                made, made_counts = parts.centroids.cpu().numpy(), np.diff(parts.offsets)
        centroids += workers.gather(made)
        counts += workers.gather(made_counts)
    return np.concatenate(centroids), np.concatenate([[0], np.cumsum(np.concatenate(counts))])
