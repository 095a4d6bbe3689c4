"""Every file that was found and where it went; what was set aside, and near-duplicates."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from launch.report import charts
from launch.report.charts import WIDTH, Flow
from launch.report.sections.section import Section
from launch.report.view import View
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.duplicates import Duplicates, least_alike
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.artifacts.splits import HELD_OUT, POOL
from pipeline.storage.location import Location

_PER_REASON = 7
_MAX_BYTES = 32 * 2**20
_MEANING = {
    "duplicate": "The same bytes as a file that was kept.",
    "empty file": "A file of no bytes.",
    "corrupt image": "Its bytes end early, or are no image.",
    "corrupt JPEG": "Its bytes end early, or are no JPEG.",
    "too small": "Its shorter side is under shard.min_side.",
    "too large": "More pixels than are decoded for anyone.",
    "truncated tar": "The tar ends inside it.",
    "near-duplicate": "A near-duplicate of a sample that is kept.",
    "near held-out": "A near-duplicate of a held-out sample, which training must not see.",
    "damaged tar": "What follows in this tar cannot be read.",
}


def context(view: View) -> dict[str, Any]:
    """`flow`, `selections`, `rejects` and `duplicates`."""
    return {
        "flow": flow(view),
        "selections": view.attempt(selections, view) or [],
        "rejects": view.attempt(rejects, view) or [],
        "duplicates": view.attempt(near_duplicates, view) or [],
    }


def flow(view: View) -> Any:
    """The flow from files to the newest selection; None before sharding."""
    counts = view.statistics(Samples, None)
    if not counts:
        return None
    streams = [Flow("in the pool", counts["pool"], "pool"), Flow("held out, for evaluation only", counts["held_out"], "held")]
    streams += [Flow("examples to look for", counts["queries"], "held")]
    rejected = sorted(counts["rejected"].items(), key=lambda item: -item[1])
    streams += [Flow(f"set aside: {reason}", num, "bad") for reason, num in rejected]
    chosen = []
    if numbers := view.rounds(SelectedRows):
        num = view.statistics(SelectedRows, numbers[-1])["selected"]
        dropped = view.statistics(Duplicates, numbers[-1]).get("dropped", 0)
        chosen = [
            Flow(f"selected in round {numbers[-1]}", num, "sel"),
            Flow("not selected", counts["pool"] - num - dropped, "pool"),
            Flow("near-duplicates", dropped, "bad"),
        ]
    return charts.flow(counts["files"], [s for s in streams if s.count], [s for s in chosen if s.count], WIDTH)


def selections(view: View) -> list[dict[str, Any]]:
    """How much of the pool each round selected, and how much of that the round before had selected too."""
    rows: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for number in view.rounds(Clusters, SelectedRows):
        chosen = view.selected(number)
        shared = int((before & chosen).sum()) if before is not None else None
        rows.append({"round": number, "selected": int(chosen.sum()), "pool": len(chosen), "shared": shared})
        before = chosen
    return rows


def rejects(view: View) -> list[dict[str, Any]]:
    """For each reason some of the files set aside, with pictures where they can be decoded."""
    samples = view.samples
    if samples is None:
        return []
    counts: dict[str, int] = samples.statistics["rejected"]
    examples: dict[str, list[dict[str, Any]]] = {reason: [] for reason in counts}
    columns = ["source", "reason", "detail", "kept_source", "url", "offset", "size", "content"]
    for batch in samples.rejects(columns):
        for row in batch.to_pylist():
            if len(examples.setdefault(row["reason"], [])) < _PER_REASON:
                examples[row["reason"]].append(row)
        if all(len(rows) == _PER_REASON for rows in examples.values()):
            break
    groups = []
    for reason, num in sorted(counts.items(), key=lambda item: -item[1]):
        shown = [_reject(view, row) for row in examples[reason]]
        groups.append({"kind": reason, "count": num, "meaning": _MEANING.get(reason, ""), "examples": shown})
    return groups


def _reject(view: View, row: dict[str, Any]) -> dict[str, Any]:
    """A tile; an exact duplicate shows the same picture twice."""
    number, kept = view.pictures.add(_content(row)), row["kept_source"]
    reason = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
    tile = {"source": row["source"], "name": PurePosixPath(row["source"]).name, "picture": number, "reason": reason}
    return tile | {"kept": kept, "kept_picture": number if kept else None}


def _content(row: dict[str, Any]) -> bytes:
    """The bytes of a reject; none if they are many or gone."""
    if row["content"] is not None:
        return bytes(row["content"])
    if not row["url"] or row["size"] > _MAX_BYTES:
        return b""
    try:
        return Location(row["url"], row["offset"], row["size"]).read(tries=1)
    except DataError:
        return b""


def near_duplicates(view: View) -> list[dict[str, Any]]:
    """For each reason the pairs of the last round that are least alike: if these are right, so are the others."""
    rounds = view.rounds(Duplicates)
    if not rounds:
        return []
    duplicates = view.run.by_round(Duplicates)[rounds[-1]]
    counts: dict[str, int] = duplicates.statistics["reasons"]
    table = duplicates.dropped()
    dropped, kept = table["row_id"].to_numpy(), table["kept_row_id"].to_numpy()
    reasons = dict(zip(zip(dropped.tolist(), kept.tolist(), strict=True), table["reason"].to_pylist(), strict=True))
    doubtful: dict[str, list[dict[str, Any]]] = {reason: [] for reason in counts}
    for edge in pa.concat_tables(least_alike(path) for path in duplicates.edges()).to_pylist():
        one, two = edge["row_id"], edge["other_row_id"]
        pair = (one, two) if (one, two) in reasons else (two, one)
        if pair in reasons and len(doubtful[reasons[pair]]) < _PER_REASON:
            doubtful[reasons[pair]].append(_pair(view, pair, edge))
    return [
        {"kind": reason, "count": num, "meaning": _MEANING[reason], "examples": doubtful[reason]}
        for reason, num in counts.items()
    ]


def _pair(view: View, pair: tuple[int, int], edge: dict[str, Any]) -> dict[str, Any]:
    """A tile of a dropped row and the row kept for it."""
    alike = f"{edge['bits']} bits" if edge["similarity"] is None else f"{edge['similarity']:.3f}"
    dropped, kept = pair
    pictures = view.pictures.of(np.array([dropped]), POOL)
    pictures |= view.pictures.of(np.array([kept]), HELD_OUT if edge["held_out"] else POOL)
    tile = {"source": f"sample {dropped}", "name": alike, "picture": pictures.get(dropped), "reason": f"alike by {alike}"}
    return tile | {"kept": f"sample {kept}", "kept_picture": pictures.get(kept)}


SECTION = Section("in", "What went in", "sections/intake.html.j2", context)
