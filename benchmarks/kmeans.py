"""k-means beside its peers: time, memory, and what the clusters are worth.

`seconds` is the time until the centroids and the label of every row are known; on GPU cases it is the time of one Lloyd
iteration from given centroids, update included. `objective` is the mean squared distance of a row to its nearest centroid
in float64, `empty` counts centroids that are no row's nearest, `agreement` is the share of rows whose label is that of a
float64 argmin over the engine's own centroids, `floor_over_time` is the time that the products alone would take at the
machine's measured matrix rate, over the time that the iterations took.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import harness
import numpy as np
import torch

Labelled = tuple[np.ndarray, np.ndarray]
"""Centroids (K, D) and labels (N,)."""


class Case(NamedTuple):
    """Rows and clusters of one benchmark."""

    num_rows: int
    dim: int
    num_clusters: int
    iterations: int = 10


CASES = {
    "n50k-d256-k1000": Case(50_000, 256, 1000),
    "n200k-d768-k4096": Case(200_000, 768, 4096),
    "n2m-d384-k16384": Case(2_000_000, 384, 16_384),
    "n2m-d1024-k65536": Case(2_000_000, 1024, 65_536),
    "n8m-d768-k1000": Case(8_000_000, 768, 1000),
}


def rows_of(case: Case, *, components: int = 500, noise: float = 0.6, seed: int = 0) -> np.ndarray:
    """A mixture whose components follow a power law, at unit length: (N, D) float32."""
    draws = np.random.default_rng(seed)
    share = 1 / np.arange(1, components + 1)
    centres = draws.standard_normal((components, case.dim))
    rows = centres[draws.choice(components, case.num_rows, p=share / share.sum())]
    rows = rows + noise * draws.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def windrow(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
    from curation.embeddings.source import ArraySource
    from curation.kmeans.lloyd import KMeans, KMeansOptions

    options = KMeansOptions(max_iterations=case.iterations)
    result = KMeans(ArraySource(rows), case.num_clusters, rng_key=seed, options=options).run()
    return result.centroids, result.local_assignment


def _faiss(method: str) -> Callable[[np.ndarray, Case, int, argparse.Namespace], Labelled]:
    def run(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
        import faiss

        peer = faiss.Kmeans(
            case.dim,
            case.num_clusters,
            niter=case.iterations,
            seed=seed + 1,
            max_points_per_centroid=len(rows),
            init_method=getattr(faiss, f"ClusteringInitMethod_{method}"),
        )
        peer.train(rows)
        return peer.centroids, peer.index.search(rows, 1)[1][:, 0]

    return run


def faiss_superkmeans(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
    import faiss

    peer = faiss.SuperKmeans(
        case.dim, case.num_clusters, niter=case.iterations, seed=seed + 1, max_points_per_centroid=len(rows)
    )
    peer.train(rows)
    peer.index.reset()
    peer.index.add(peer.centroids)
    return peer.centroids, peer.index.search(rows, 1)[1][:, 0]


def sklearn(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
    from sklearn.cluster import KMeans

    peer = KMeans(case.num_clusters, init="random", n_init=1, max_iter=case.iterations, algorithm="lloyd", random_state=seed)
    peer.fit(rows)
    return peer.cluster_centers_, peer.labels_


def superkmeans(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
    from superkmeans import SuperKMeans

    peer = SuperKMeans(
        case.num_clusters,
        case.dim,
        iters=case.iterations,
        seed=seed,
        sampling_fraction=1.0,
        early_termination=False,
        n_threads=torch.get_num_threads(),
    )
    centroids = peer.train(rows)
    return centroids, peer.assign(rows, centroids)


def flash_kmeans(rows: np.ndarray, case: Case, seed: int, _: argparse.Namespace) -> Labelled:
    from flash_kmeans import FlashKMeans

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peer = FlashKMeans(
        case.dim, case.num_clusters, niter=case.iterations, seed=seed, use_triton=device.type == "cuda", device=device
    )
    labels = peer.fit_predict(torch.from_numpy(rows).to(device))
    return peer.centroids_b.cpu().numpy().reshape(-1, case.dim), labels.cpu().numpy().reshape(-1)


def ssl_data_curation(rows: np.ndarray, case: Case, _: int, args: argparse.Namespace) -> Labelled:
    use_ssl_data_curation(args.ssl_data_curation)
    from src.kmeans_gpu import kmeans

    centroids, _, labels, _ = kmeans(
        torch.from_numpy(rows), case.num_clusters, case.iterations, chunk_size=10**8 // case.num_clusters, num_init=1
    )
    return np.asarray(centroids), np.asarray(labels)


def use_ssl_data_curation(checkout: Path | None) -> None:
    """Make a checkout of facebookresearch/ssl-data-curation importable; it predates NumPy 2."""
    if checkout is None:
        raise harness.Skipped("give --ssl-data-curation CHECKOUT")
    sys.path.insert(0, str(checkout))
    vars(np)["Inf"] = np.inf


ENGINES: dict[str, Callable[[np.ndarray, Case, int, argparse.Namespace], Labelled]] = {
    "windrow": windrow,
    "faiss-kmeans": _faiss("RANDOM"),
    "faiss-kmeans++": _faiss("KMEANS_PLUS_PLUS"),
    "faiss-superkmeans": faiss_superkmeans,
    "sklearn": sklearn,
    "superkmeans": superkmeans,
    "flash-kmeans": flash_kmeans,
    "ssl-data-curation": ssl_data_curation,
}


def measure(name: str, engine: str, seed: int, args: argparse.Namespace) -> harness.Row:
    """One engine on one case."""
    case = CASES[name]
    if case.num_rows > 1_000_000:
        return _iterations(case, engine, args)
    rows = rows_of(case)
    run = ENGINES[engine]
    once = case._replace(iterations=1)
    run(rows[: 2 * case.num_clusters], once, seed, args)  # loads and compiles
    with harness.PeakMemory() as memory:
        run(rows, once, seed, args)  # asks the system for memory
        began = harness.now()
        centroids, labels = run(rows, case, seed, args)
        seconds = harness.now() - began
    objective, exact = _exact(rows, centroids)
    return {
        "seconds": seconds,
        "objective": objective,
        "peak_bytes": memory.num_bytes,
        "empty": case.num_clusters - len(np.unique(exact)),
        "agreement": float((exact == labels).mean()),
    }


def _iterations(case: Case, engine: str, args: argparse.Namespace) -> harness.Row:
    """Lloyd iterations on a GPU from the same centroids, rows of the case."""
    if not torch.cuda.is_available():
        raise harness.Skipped("needs a GPU")
    rows = _rows_on_gpu(case)
    initial = rows[torch.randperm(case.num_rows, generator=torch.Generator().manual_seed(0))[: case.num_clusters]].float()
    run = ITERATIONS[engine]
    run(rows, initial, 2, args)  # compiles
    with harness.PeakMemory() as memory:
        seconds, centroids, labels = run(rows, initial, case.iterations, args)
    sample = torch.arange(0, case.num_rows, max(1, case.num_rows // 100_000))
    objective, exact = _exact(rows[sample.to(rows.device)].cpu().numpy(), centroids)
    floor = 2 * case.num_rows * case.dim * case.num_clusters / harness.matmul_rate(torch.bfloat16)
    return {
        "seconds": seconds,
        "objective": objective,
        "peak_bytes": memory.num_bytes,
        "agreement": float((exact == labels[sample.numpy()]).mean()),
        "floor_over_time": floor / seconds,
    }


def _rows_on_gpu(case: Case) -> torch.Tensor:
    """The mixture of `rows_of`, drawn on the GPU: (N, D) float16."""
    draws = torch.Generator("cuda").manual_seed(0)
    share = 1 / torch.arange(1, 2001, dtype=torch.float32, device="cuda")
    centres = torch.randn(2000, case.dim, device="cuda", generator=draws)
    rows = torch.empty(case.num_rows, case.dim, dtype=torch.float16, device="cuda")
    for block in rows.split(250_000):
        drawn = centres[torch.multinomial(share, len(block), replacement=True, generator=draws)]
        drawn = drawn + 0.6 * torch.randn(drawn.shape, device="cuda", generator=draws)
        block.copy_(drawn / drawn.norm(dim=1, keepdim=True))
    return rows


Iterated = tuple[float, np.ndarray, np.ndarray]
"""Seconds an iteration, centroids (K, D), labels (N,)."""


def windrow_iterations(rows: torch.Tensor, initial: torch.Tensor, num: int, _: argparse.Namespace) -> Iterated:
    from curation.embeddings.source import ArraySource
    from curation.kmeans.lloyd import KMeans, KMeansOptions

    source = ArraySource(rows.cpu().numpy(), block_rows=2**20)
    start, options = initial.cpu().numpy(), KMeansOptions(max_iterations=num, tolerance=0)
    times: list[float] = []
    kmeans = KMeans(source, len(start), rng_key=1, initial=start, options=options)
    result = kmeans.run(lambda _: times.append(harness.now()))
    return float(median(np.diff(times))), result.centroids, result.local_assignment


def flash_iterations(rows: torch.Tensor, initial: torch.Tensor, num: int, _: argparse.Namespace) -> Iterated:
    from flash_kmeans import batch_kmeans_Euclid

    began = harness.now()
    labels, centroids, _ = batch_kmeans_Euclid(
        rows[None], len(initial), max_iters=num, tol=-1, init_centroids=initial[None].to(rows.dtype)
    )
    return (harness.now() - began) / num, centroids[0].float().cpu().numpy(), labels[0].cpu().numpy()


def faiss_iterations(rows: torch.Tensor, initial: torch.Tensor, num: int, _: argparse.Namespace) -> Iterated:
    import faiss

    if not faiss.get_num_gpus():
        raise harness.Skipped("faiss is not built for GPUs")
    host, given = rows.float().cpu().numpy(), initial.cpu().numpy()
    peer = faiss.Kmeans(rows.shape[1], len(given), niter=num, gpu=True, max_points_per_centroid=len(host))
    began = harness.now()
    peer.train(host, init_centroids=given)
    seconds = (harness.now() - began) / num
    return seconds, peer.centroids, peer.index.search(host, 1)[1][:, 0]


ITERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, int, argparse.Namespace], Iterated]] = {
    "windrow": windrow_iterations,
    "flash-kmeans": flash_iterations,
    "faiss-kmeans": faiss_iterations,
}


def _exact(rows: np.ndarray, centroids: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean squared distance to the nearest centroid, and which it is, in float64."""
    c = torch.from_numpy(np.asarray(centroids, dtype=np.float64))
    total, labels = 0.0, []
    for block in torch.from_numpy(rows).split(4096):
        x = block.double()
        scores = torch.addmm((c * c).sum(1), x, c.T, alpha=-2)
        label = scores.argmin(1)
        total += float((x - c[label]).square().sum())
        labels.append(label)
    return total / len(rows), torch.cat(labels).numpy()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssl-data-curation", type=Path, help="a checkout of that repository, to measure it too")


if __name__ == "__main__":
    small, middle, *large = CASES
    fast = ["windrow", "faiss-kmeans", "faiss-superkmeans", "superkmeans"]
    presets = {"cpu": {small: list(ENGINES), middle: fast}, "gpu": {case: list(ITERATIONS) for case in large}}
    harness.main("kmeans", presets, measure, _arguments)
