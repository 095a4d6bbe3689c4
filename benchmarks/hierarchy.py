"""Hierarchical curation: what a balanced sample is worth, and what it costs, from a toy to a billion rows.

`rings`: the toy of ssl-data-curation's README, 29,700 points on five rings of equal area in two dimensions, one of them with
two thirds of the points and one with 200; k-means to 1000 and 300 clusters with ten resampling steps, and a sample of 1000.
`tv` is the sample's total variation distance from as many points of every ring. `n1b`: 10 million of a billion simulated
rows over 10M, 500k, 50k and 10k clusters. `disk`: k-means of 20 million rows of 256 fp16 numbers (10 GB) in a file.
`peak_bytes` is of anonymous memory, which the machine cannot take back as it can a file's pages.
"""

import argparse
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch
from kmeans import use_ssl_data_curation

from curation.embeddings.source import ArraySource
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import build_hierarchy
from curation.kmeans.lloyd import KMeans, KMeansOptions
from curation.levels import ClusterHierarchy, Level
from curation.measures.balance import imbalance, total_variation_from_uniform
from curation.selectors.config import BalancedConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool

_RINGS = ((20_000, -2.2, 1), (200, 0, 1), (1000, 2.2, 1), (500, -1.2, 0.2), (8000, 1.2, 0.2))
_SAMPLE = 1000
_BLOCK = 1_000_000


def rings(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) and the ring of each."""
    draws = np.random.default_rng(seed)
    points = []
    for num, x, y in _RINGS:
        radius, angle = draws.uniform(0.7, 1.0, num), draws.uniform(0, 2 * np.pi, num)
        points.append(np.stack([radius * np.cos(angle) + x, radius * np.sin(angle) + y], axis=1))
    return np.concatenate(points).astype(np.float32), np.repeat(np.arange(5), [num for num, _, _ in _RINGS])


def windrow_rings(points: np.ndarray, seed: int) -> np.ndarray:
    config = ClusterConfig(levels=(1000, 300), resampling_steps=10)
    hierarchy = build_hierarchy(ArraySource(points), config, rng_key=seed)
    return select(BalancedConfig(budget=_SAMPLE), Pool(hierarchy=hierarchy), rng_key=seed).rows


def peer_rings(points: np.ndarray, seed: int, args: argparse.Namespace) -> np.ndarray:
    use_ssl_data_curation(args.ssl_data_curation)
    from src import hierarchical_kmeans_gpu, hierarchical_sampling
    from src.clusters import HierarchicalCluster

    np.random.seed(seed)  # noqa: NPY002 - theirs has no other way
    torch.manual_seed(seed)
    clusters = hierarchical_kmeans_gpu.hierarchical_kmeans_with_resampling(
        data=torch.from_numpy(points), n_clusters=[1000, 300], n_levels=2, sample_sizes=[15, 2], verbose=False
    )
    tree = HierarchicalCluster.from_dict(clusters)
    return np.asarray(hierarchical_sampling.hierarchical_sampling(tree, target_size=_SAMPLE))


def measure_rings(engine: str, seed: int, args: argparse.Namespace) -> harness.Row:
    """A balanced sample of the rings by one engine."""
    points, ring = rings(seed)
    began = harness.now()
    rows = windrow_rings(points, seed) if engine == "windrow" else peer_rings(points, seed, args)
    seconds = harness.now() - began
    tv = total_variation_from_uniform(np.bincount(ring[rows], minlength=5))
    return {"seconds": seconds, "tv": tv, "selected": len(rows)}


def measure_billion() -> harness.Row:
    """Selection from a billion simulated rows in clusters of skewed sizes, the first several times as large as the last."""
    num, sizes = 10**9, (10**7, 500_000, 50_000, 10_000)
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        finest = np.lib.format.open_memmap(f"{directory}/assignment.npy", "w+", np.int32, (num,))
        counts = np.zeros(sizes[0], dtype=np.int64)
        for start in range(0, num, 10 * _BLOCK):
            labels = (sizes[0] * draws.random(10 * _BLOCK) ** 3).astype(np.int32)
            finest[start : start + len(labels)] = labels
            counts += np.bincount(labels, minlength=sizes[0])
        levels = []
        assignment = np.load(f"{directory}/assignment.npy", mmap_mode="r")
        for level, num_clusters in enumerate(sizes):
            if level:
                assignment = (draws.random(sizes[level - 1]) ** 1.5 * num_clusters).astype(np.int32)
                counts = np.bincount(assignment, weights=counts, minlength=num_clusters).astype(np.int64)
            nothing = np.zeros((num_clusters, 0), dtype=np.float32)
            levels.append(Level(centroids=nothing, assignment=assignment, squared_distance=np.zeros(1), sizes=counts))
        config = BalancedConfig(budget=10**7)
        with harness.PeakMemory() as memory:
            began = harness.now()
            selection = select(config, Pool(hierarchy=ClusterHierarchy(tuple(levels))), rng_key=1)
            seconds = harness.now() - began
        assert (np.diff(selection.rows) > 0).all()
        return {"seconds": seconds, "selected": int(selection.repeats.sum()), "peak_bytes": memory.num_bytes}


def measure_disk(args: argparse.Namespace) -> harness.Row:
    """k-means of 20 million rows in a memory-mapped file."""
    num, dim = 20_000_000, 256
    path = args.directory / "windrow-benchmark-20m.npy"
    if not path.exists():
        rows = np.lib.format.open_memmap(path, "w+", np.float16, (num, dim))
        draws = np.random.default_rng(0)
        centres = draws.standard_normal((2000, dim)).astype(np.float32)
        share = 1 / np.arange(1, 2001)
        for start in range(0, num, _BLOCK):
            block = centres[draws.choice(2000, _BLOCK, p=share / share.sum())]
            block += 0.6 * draws.standard_normal(block.shape, dtype=np.float32)
            rows[start : start + _BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
        rows.flush()
    with harness.PeakMemory() as memory:
        began = harness.now()
        source, options = ArraySource(np.load(path, mmap_mode="r")), KMeansOptions(max_iterations=10)
        result = KMeans(source, 1000, rng_key=1, options=options).run()
        seconds = harness.now() - began
    return {
        "seconds": seconds,
        "iterations": len(result.inertia),
        "objective": result.inertia[-1] / num,
        "imbalance": imbalance(result.sizes),
        "peak_bytes": memory.num_bytes,
    }


def measure(case: str, engine: str, seed: int, args: argparse.Namespace) -> harness.Row:
    """One engine on one case."""
    if case == "rings":
        return measure_rings(engine, seed, args)
    return measure_billion() if case == "n1b" else measure_disk(args)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssl-data-curation", type=Path, help="a checkout of that repository, to measure it too")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="for the file of 10 GB, which stays"
    )


if __name__ == "__main__":
    cases = {"rings": ["windrow", "ssl-data-curation"], "n1b": ["windrow"], "disk": ["windrow"]}
    harness.main("hierarchy", {"cpu": cases}, measure, _arguments)
