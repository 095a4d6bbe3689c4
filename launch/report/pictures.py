"""The report's pictures: what was set aside, samples of clusters, and the map of the embeddings."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import rng
from curation.base.errors import DataError
from curation.embeddings.source import EmbeddingSource
from curation.kmeans.levels import ClusterHierarchy
from launch.report import charts
from launch.report.charts import WIDTH, Sheet
from pipeline.artifacts.manifest import DUPLICATES
from pipeline.rounds.record import Run
from pipeline.sources import digits
from pipeline.stages.cluster import read_hierarchy
from pipeline.stages.embed import open_embeddings
from pipeline.stages.shard import INDEX, REJECTS
from trainers.data.decoding import decode
from trainers.data.samples import PLACE, SampleList
from trainers.data.shard_reader import ShardReader

MAP_ROWS, MAP_PICTURES = 2000, 500
_PER_CLUSTER, _PER_GROUP, _PER_REASON = 12, 3, 7
_DOUBTFUL = 500
_READ_TOGETHER = 64
_BLOCK_ROWS = 1 << 20
_MAX_FILE_BYTES = 32 * 2**20
_MEANING = {
    "duplicate": "The same bytes as a file that was kept.",
    "empty file": "Nothing in it.",
    "corrupt image": "Its bytes end early, or are no image.",
    "corrupt JPEG": "Its bytes end early, or are no JPEG.",
    "too small": "Its shorter side is under shard.min_side.",
    "too large": "More pixels than are decoded for anyone.",
    "truncated tar": "The tar ends inside it.",
    "near-duplicate": "Says what another sample says that stays.",
    "near held-out": "Says what a held-out sample says, and would give it away.",
    "damaged tar": "What follows in this tar cannot be read.",
}


def rejects(run: Run, sheet: Sheet) -> list[dict[str, Any]]:
    """For each reason some of the files set aside, with pictures where they are files that can be decoded."""
    counts = run.statistics("samples").get("rejected", {})
    examples: dict[str, list[dict[str, Any]]] = {kind: [] for kind in counts}
    if counts:
        for batch in pq.ParquetFile(run.directory / "samples" / REJECTS).iter_batches(columns=["source", "reason"]):
            for row in batch.to_pylist():
                kind = row["reason"].split(":")[0].split(" of ")[0]
                if len(examples.setdefault(kind, [])) < _PER_REASON:
                    examples[kind].append(row)
            if all(len(found) == _PER_REASON for found in examples.values()):
                break
    root = run.directory / "raw" / digits.FOLDER
    if run.config and run.config.source.type == "images":
        root = run.config.source.path.expanduser()

    def picture(source: str) -> int | None:
        image = _image_file(root, source)
        return None if image is None else sheet.add(image)

    result = []
    for kind, num in sorted(counts.items(), key=lambda item: -item[1]):
        shown = []
        for row in examples[kind]:
            kept = row["reason"].removeprefix("duplicate of ") if kind == "duplicate" else None
            tile = {"source": row["source"], "name": PurePosixPath(row["source"]).name, "picture": picture(row["source"])}
            tile |= {"reason": row["reason"], "kept": kept, "kept_picture": picture(kept) if kept else None}
            shown.append(tile)
        result.append({"kind": kind, "count": num, "meaning": _MEANING.get(kind, ""), "examples": shown})
    return result


def _image_file(root: Path, source: str) -> np.ndarray | None:
    """Decode a file of the source. A name out of a tar may point anywhere: only paths below the root are opened."""
    if PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
        return None
    try:
        path = root / source
        return decode(path.read_bytes()) if path.is_file() and path.stat().st_size < _MAX_FILE_BYTES else None
    except (OSError, DataError):
        return None


class Pictures:
    """Samples, read a few at a time, and their thumbnails on the sheet."""

    def __init__(self, run: Run, sheet: Sheet) -> None:
        self._samples, self._sheet, self._known = run.directory / "samples", sheet, dict[int, int]()
        parts = run.manifests["samples"].parts if "samples" in run.manifests else ()
        self._indexes = [part for part in parts if part.path.startswith(f"{INDEX}/")]
        self._ends = np.cumsum([part.num_rows for part in self._indexes])

    def rows(self, row_ids: np.ndarray) -> pa.Table:
        """The index at ascending `row_ids`, which count its rows. Reads only the files they are in."""
        which = np.searchsorted(self._ends, row_ids, side="right")
        tables = []
        for number in np.unique(which):
            part = self._indexes[number]
            columns = [*PLACE, "source", "label"]
            table = pq.read_table(self._samples / part.path, columns=columns)
            tables.append(table.take(row_ids[which == number] - (self._ends[number] - part.num_rows)))
        return pa.concat_tables(tables)

    def of(self, row_ids: np.ndarray) -> dict[int, int]:
        """The number on the sheet of each of `row_ids` that can be read."""
        wanted = np.array([row for row in np.unique(row_ids) if int(row) not in self._known], dtype=np.int64)
        if len(wanted):
            reader = ShardReader(SampleList.of(self.rows(wanted), self._samples), tries=1)
            for index, row in enumerate(wanted.tolist()):
                if index % _READ_TOGETHER == 0:
                    reader.ahead(range(index, min(index + _READ_TOGETHER, len(wanted))))
                try:
                    self._known[row] = self._sheet.add(reader.image(index))
                except DataError:  # a shard was moved away: the rest of the page does without
                    continue
        return {row: self._known[row] for row in map(int, row_ids) if row in self._known}


def near_duplicates(run: Run, number: int, pictures: Pictures) -> list[dict[str, Any]]:
    """For each reason the pairs of one round that are least alike: if these are right, so are the others."""
    place = run.directory / f"round-{number}" / "dedup"
    counts = run.statistics(f"round-{number}/dedup")["reasons"]
    table = pq.read_table(place / DUPLICATES)
    gone, kept = table["row_id"].to_numpy(), table["kept_row_id"].to_numpy()
    reasons = dict(zip(zip(gone.tolist(), kept.tolist(), strict=True), table["reason"].to_pylist(), strict=True))
    doubtful: dict[str, list[dict[str, Any]]] = {reason: [] for reason in counts}
    columns = ["row_id", "other_row_id", "similarity", "bits"]
    for edge in pa.concat_tables(_least_alike(path, columns) for path in sorted(place.glob("edges-*.parquet"))).to_pylist():
        one, two = edge["row_id"], edge["other_row_id"]
        pair = (one, two) if (one, two) in reasons else (two, one)
        if pair in reasons and len(doubtful[reasons[pair]]) < _PER_REASON:
            alike = f"{edge['bits']} bits" if edge["similarity"] is None else f"{edge['similarity']:.3f}"
            found = pictures.of(np.array(sorted(pair)))
            tile = {"source": f"sample {pair[0]}", "name": alike, "picture": found.get(pair[0]), "reason": f"alike by {alike}"}
            doubtful[reasons[pair]].append(tile | {"kept": f"sample {pair[1]}", "kept_picture": found.get(pair[1])})
    return [
        {"kind": reason, "count": num, "meaning": _MEANING[reason], "examples": doubtful[reason]}
        for reason, num in counts.items()
    ]


def _least_alike(path: Path, columns: list[str]) -> pa.Table:
    """Some hundred edges of a file: those of the least similarity, or of the most bits."""
    found = pq.ParquetFile(path).schema_arrow.empty_table().select(columns)
    for batch in pq.ParquetFile(path).iter_batches(columns=columns):
        order = [("similarity", "ascending"), ("bits", "descending")]
        found = pa.concat_tables([found, pa.table(batch)]).sort_by(order)[:_DOUBTFUL]
    return found


def clusters(run: Run, number: int, pictures: Pictures) -> dict[str, Any]:
    """Pictures from the largest, middle and smallest clusters of each level of one round."""
    place = run.directory / f"round-{number}"
    hierarchy, row_ids = read_hierarchy(place / "cluster")
    normalize = bool(run.manifests[f"round-{number}/cluster"].settings.get("normalize", False))
    source = open_embeddings(place / "embed", normalize=normalize)
    has_selection = bool(run.rounds("select").count(number))
    chosen = run.selected(number) if has_selection else np.zeros(len(row_ids), dtype=bool)
    levels = []
    for depth, level in enumerate(hierarchy.levels, start=1):
        by_size = np.argsort(-level.sizes, kind="stable")
        by_size = by_size[level.sizes[by_size] > 0]
        counts = run.selected_sizes(number, depth, len(level.sizes)) if has_selection else None
        groups = _groups(by_size)
        nearest = _nearest(hierarchy, depth, np.concatenate([ids for _, ids in groups]), source)
        shown = []
        for name, ids in groups:
            cards = []
            for cluster in ids.tolist():
                members = row_ids[nearest[cluster]]
                numbers = pictures.of(members)
                tiles_shown = [{"picture": p, "row": row, "on": bool(chosen[row])} for row, p in numbers.items()]
                picked = None if counts is None else int(counts[cluster])
                cards.append({"id": cluster, "size": int(level.sizes[cluster]), "selected": picked, "tiles": tiles_shown})
            shown.append({"name": name, "cards": cards})
        levels.append({"level": depth, "num": level.num_clusters, "groups": shown})
    return {"round": number, "levels": levels}


def _groups(by_size: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Three clusters of each kind, none of them twice."""
    num = len(by_size)
    if num <= 3 * _PER_GROUP:
        return [("All clusters, largest first", by_size)]
    middle = max(num // 2 - _PER_GROUP // 2, _PER_GROUP)
    middle = min(middle, num - 2 * _PER_GROUP)
    return [
        ("Largest", by_size[:_PER_GROUP]),
        ("In the middle", by_size[middle : middle + _PER_GROUP]),
        ("Smallest", by_size[-_PER_GROUP:]),
    ]


def _nearest(hierarchy: ClusterHierarchy, depth: int, wanted: np.ndarray, source: EmbeddingSource) -> dict[int, np.ndarray]:
    """Rows nearest to the centroid of each of the `wanted` clusters, nearest first.

    At level 1 the distances are known. Above it they are measured on at most a few hundred members drawn at random.
    """
    first = hierarchy.levels[0]
    pool: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    keep = _PER_CLUSTER if depth == 1 else 30 * _PER_CLUSTER
    for start in range(0, len(first.assignment), _BLOCK_ROWS):
        labels = first.assignment[start : start + _BLOCK_ROWS]
        for upper in hierarchy.levels[1:depth]:
            labels = upper.assignment[labels]
        hits = np.flatnonzero(np.isin(labels, wanted))
        rows = hits + start
        score = first.squared_distance[rows] if depth == 1 else rng.uniform(rng.key(0, "report", depth), rows)[:, 0]
        for cluster in np.unique(labels[hits]).tolist():
            here = labels[hits] == cluster
            old_rows, old_score = pool.get(cluster, (np.empty(0, np.int64), np.empty(0)))
            all_rows, all_score = np.concatenate([old_rows, rows[here]]), np.concatenate([old_score, score[here]])
            best = np.argsort(all_score, kind="stable")[:keep]
            pool[cluster] = all_rows[best], all_score[best]
    result = {}
    for cluster, (rows, _) in pool.items():
        rows = np.sort(rows)
        difference = source.take(rows).astype(np.float32) - hierarchy.levels[depth - 1].centroids[cluster]
        result[cluster] = rows[np.argsort((difference**2).sum(axis=1), kind="stable")][:_PER_CLUSTER]
    return result


def embedding_map(run: Run, numbers: Sequence[int], pictures: Pictures) -> dict[str, Any] | None:
    """t-SNE of the same samples in several rounds, turned so that they resemble each other."""
    num = int(run.statistics("samples").get("pool", 0))
    if not numbers or num < 5:
        return None
    drawn = np.arange(min(MAP_ROWS, num))
    rows = rng.permute(rng.key(0, "map"), drawn, num)
    with_picture = np.sort(rows[:MAP_PICTURES])
    rows = np.sort(rows)
    index = pictures.rows(rows)
    sheet = pictures.of(with_picture)
    labels = [label_name(label) for label in index["label"].to_pylist()]
    has_labels = any(label != "no label" for label in labels)
    names, kind = np.unique(labels, return_inverse=True)
    by_count = np.argsort(-np.bincount(kind), kind="stable")
    rank = np.argsort(by_count)
    colours = charts.palette(len(names))
    maps: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for number in numbers:
        hierarchy, _ = read_hierarchy(run.directory / f"round-{number}/cluster")
        cluster = hierarchy.levels[0].assignment[rows]
        for upper in hierarchy.levels[1:]:
            cluster = upper.assignment[cluster]
        source = open_embeddings(run.directory / f"round-{number}/embed", normalize=True)
        placed = before = _tsne(source.take(rows).astype(np.float32), before)
        wheel = colours if has_labels else charts.palette(hierarchy.levels[-1].num_clusters)
        paint = [wheel[i] for i in (rank[kind] if has_labels else cluster)]
        chosen = run.selected(number)[rows] if number in run.rounds("select") else np.zeros(len(rows), dtype=bool)
        size = 700 if len(numbers) == 1 else (WIDTH + 50 - 16 * (len(numbers) - 1)) // len(numbers) - 50
        unit = (placed - placed.min(axis=0)) / np.maximum(np.ptp(placed, axis=0), 1e-9)
        chart = charts.scatter(unit, paint, chosen, size)
        maps.append({"round": number, "chart": chart, "on": chosen.astype(int).tolist(), "cluster": cluster.tolist()})
    legend = [(str(names[i]), colours[place]) for place, i in enumerate(by_count)] if has_labels else []
    return {
        "maps": maps,
        "legend": legend if len(legend) <= 24 else [],
        "has_labels": has_labels,
        "rows": len(rows),
        "pool": num,
        "pictures": len(sheet),
        "data": {
            "row": rows.tolist(),
            "picture": [sheet.get(row, -1) for row in rows.tolist()],
            "label": labels if has_labels else None,
            "name": index["source"].to_pylist(),
            "on": [m["on"] for m in maps],
            "cluster": [m["cluster"] for m in maps],
        },
    }


def _tsne(features: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """(N, 2): close rows close together; rotated or mirrored towards `reference`, which changes nothing in it."""
    from sklearn.manifold import TSNE

    nearby = min(30.0, (len(features) - 1) / 3)
    placed: np.ndarray = TSNE(init="pca", perplexity=nearby, random_state=0).fit_transform(features).astype(np.float64)
    placed -= placed.mean(axis=0)
    if reference is not None:
        left, _, right = np.linalg.svd(placed.T @ reference)
        placed = placed @ left @ right
    return placed


def label_name(name: str | None) -> str:
    """A label as the page shows it."""
    return "no label" if name is None else name
