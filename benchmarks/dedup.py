"""Near-duplicates among many rows: the share of them that is found, and the time it takes, beside faiss.

The rows have planted near-duplicates, and copies, among neighbours that are merely similar. `recall` is the share of all
pairs within the similarity that are found, for a sample of rows compared with all others in float64; `copies_precision` is
the share of pairs called copies that are copies. `seconds` includes the clustering.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import harness
import numpy as np
import torch


class Case(NamedTuple):
    """Rows of one benchmark."""

    num_rows: int
    dim: int
    num_clusters: int
    similarity: float = 0.95


CASES = {"n100k-d256": Case(100_000, 256, 300), "n1m-d256": Case(1_000_000, 256, 1000)}
PairSet = set[tuple[int, int]]


def rows_of(case: Case, seed: int = 0) -> np.ndarray:
    """A power-law mixture of which a tenth is copied: half exactly, half with noise up to beyond the similarity."""
    draws = np.random.default_rng(seed)
    share = 1 / np.arange(1, 2001)
    centres = draws.standard_normal((2000, case.dim), dtype=np.float32)
    rows = np.empty((case.num_rows, case.dim), dtype=np.float32)
    for start in range(0, case.num_rows, 100_000):
        size = min(100_000, case.num_rows - start)
        component = draws.choice(2000, size, p=share / share.sum())
        rows[start : start + size] = centres[component] + 0.7 * draws.standard_normal((size, case.dim), dtype=np.float32)
    tenth = case.num_rows // 10
    places = draws.permutation(case.num_rows)
    from_, to = places[:tenth], places[tenth : 2 * tenth]
    noise = np.where(np.arange(tenth) % 2, draws.uniform(0, 0.5, tenth), 0)[:, None].astype(np.float32)
    rows[to] = rows[from_] + noise * draws.standard_normal((tenth, case.dim), dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def windrow(rows: np.ndarray, case: Case) -> tuple[PairSet, PairSet]:
    from curation.dedup.neighbours import find_visits, near_pairs
    from curation.embeddings.source import ArraySource
    from curation.kmeans.lloyd import KMeans
    from curation.sampling.draw import grouped

    source, radius = ArraySource(rows), (2 - 2 * case.similarity) ** 0.5
    clusters = KMeans(source, case.num_clusters, rng_key=1).run()
    visits = find_visits(source, clusters.centroids, clusters.local_assignment, radius)
    pairs, copies = set(), set()
    num = len(clusters.sizes)
    csr = grouped(clusters.local_assignment, num)
    for piece in near_pairs(source, clusters.centroids, *csr, visits, radius, clusters=range(num)):
        pairs |= set(zip(piece.first.tolist(), piece.second.tolist(), strict=True))
        same = piece.squared == 0
        copies |= set(zip(piece.first[same].tolist(), piece.second[same].tolist(), strict=True))
    return pairs, copies


def faiss_ivf(rows: np.ndarray, case: Case) -> tuple[PairSet, PairSet]:
    """An inverted file over as many lists, of which the eight nearest are searched within the radius."""
    import faiss

    wide = rows.astype(np.float32)
    index = faiss.index_factory(case.dim, f"IVF{case.num_clusters},Flat")
    index.train(wide[:: max(1, len(wide) // 100_000)])
    index.add(wide)
    index.nprobe = 8
    pairs: PairSet = set()
    for start in range(0, len(wide), 10_000):
        limits, _, labels = index.range_search(wide[start : start + 10_000], 2 - 2 * case.similarity)
        query = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        ahead = query < labels
        pairs |= set(zip(query[ahead].tolist(), labels[ahead].tolist(), strict=True))
    return pairs, set()


ENGINES: dict[str, Callable[[np.ndarray, Case], tuple[PairSet, PairSet]]] = {"windrow": windrow, "faiss-ivf": faiss_ivf}


def measure(name: str, engine: str, _seed: int, _args: argparse.Namespace) -> harness.Row:
    """One engine on one case, once."""
    case = CASES[name]
    rows = rows_of(case)
    with harness.PeakMemory() as memory:
        began = harness.now()
        pairs, copies = ENGINES[engine](rows, case)
        seconds = harness.now() - began
    # A copy stands for all that equal it: compare by the first of them.
    _, first, inverse = np.unique(rows.view(f"V{rows.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    original = first[inverse]
    expected = _brute_force(rows, np.random.default_rng(1).permutation(len(rows))[:10_000], case.similarity)
    found_pairs = {tuple(sorted((int(original[a]), int(original[b])))) for a, b in pairs}
    near_pairs = {tuple(sorted((int(original[a]), int(original[b])))) for a, b in expected if original[a] != original[b]}
    exact = {(a, b) for a, b in expected if original[a] == original[b]}
    groups = {row for pair in pairs if original[pair[0]] == original[pair[1]] for row in pair}
    return {
        "seconds": seconds,
        "pairs": len(pairs),
        "recall": len(near_pairs & found_pairs) / max(len(near_pairs), 1),
        "copies_recall": sum(a in groups and b in groups for a, b in exact) / max(len(exact), 1),
        "copies_precision": sum(original[a] == original[b] for a, b in copies) / max(len(copies), 1) if copies else None,
        "peak_bytes": memory.num_bytes,
    }


def _brute_force(rows: np.ndarray, queries: np.ndarray, similarity: float) -> PairSet:
    """All pairs of one of `queries` and any other row, by distances in float64 of what float32 finds near."""
    all_rows = torch.from_numpy(rows.astype(np.float32))
    limit = 2 - 2 * similarity
    pairs: PairSet = set()
    for query in torch.from_numpy(queries).split(500):
        near = torch.cdist(all_rows[query], all_rows).square() <= limit + 1e-3
        left, right = near.nonzero(as_tuple=True)
        one, two = query[left].numpy(), right.numpy()
        exact = ((rows[one].astype(np.float64) - rows[two]) ** 2).sum(1) <= limit
        pairs |= {(min(a, b), max(a, b)) for a, b in zip(one[exact].tolist(), two[exact].tolist(), strict=True) if a != b}
    return pairs


if __name__ == "__main__":
    engines = list(ENGINES)
    harness.main("dedup", {"cpu": {"n100k-d256": engines, "n1m-d256": engines}, "gpu": {"n1m-d256": engines}}, measure)
