"""Every file that was found and where it went; what was set aside, and near-duplicates."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from markupsafe import Markup

from curation.base.errors import DataError
from launch.report import charts
from launch.report.charts import WIDTH, Flow
from launch.report.sections.section import Section
from launch.report.view import View, round_name
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.duplicates import Duplicates
from pipeline.artifacts.samples import REJECTS, Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.artifacts.splits import HELD_OUT, POOL
from pipeline.storage.location import Location

_PER_REASON = 7
_MAX_BYTES = 32 * 2**20
"""Larger rejects are not read for the page."""
_MEANING = {
    "duplicate": "The same bytes as a file that was kept.",
    "empty file": "The file has no bytes.",
    "corrupt image": "The bytes end early, or are not an image.",
    "corrupt JPEG": "The bytes end early, or are not a JPEG.",
    "too small": "The shorter side has fewer pixels than shard.min_side.",
    "too large": "More pixels than windrow decodes.",
    "truncated tar": "The tar ends inside this file.",
    "damaged tar": "The rest of this tar cannot be read.",
    "dangling link": "A link to a file that does not exist.",
    "file name is not UTF-8": "The name of the file cannot be stored as text.",
    "near-duplicate": "A near-duplicate of a sample that is kept.",
    "near held-out": "A near-duplicate of a held-out sample, which training must not see.",
}
"""What the reasons mean that this program gives; a reason of another source stands without an explanation."""


def context(view: View) -> dict[str, Any]:
    """`flow`, `selections`, `rejects`, `rejects_file` and `duplicates`."""
    directory = view.samples.directory.relative_to(view.run.directory) if view.samples else None
    return {
        "flow": flow(view),
        "selections": view.attempt(selections, view) or [],
        "rejects": view.attempt(rejects, view) or [],
        "rejects_file": directory / REJECTS if directory else None,
        "duplicates": view.attempt(near_duplicates, view) or [],
    }


def flow(view: View) -> Markup | None:
    """The flow from files to the newest selection; None before there are samples."""
    counts = view.statistics(Samples, None)
    if not counts:
        return None
    streams = [
        Flow("in the pool", counts["pool"], "pool"),
        Flow("held out, for evaluation only", counts["held_out"], "held"),
        Flow("examples to look for", counts["queries"], "held"),
        *(Flow(f"set aside: {reason}", num, "bad") for reason, num in _most_frequent(counts["rejected"])),
    ]
    outcome = []
    if numbers := view.rounds(SelectedRows):
        num = view.statistics(SelectedRows, numbers[-1])["selected"]
        dropped = view.statistics(Duplicates, numbers[-1]).get("dropped", 0)
        outcome = [
            Flow(f"selected in {round_name(numbers[-1])}", num, "sel"),
            Flow("not selected", counts["pool"] - num - dropped, "pool"),
            Flow("near-duplicates", dropped, "bad"),
        ]
    return charts.flow(counts["files"], _not_empty(streams), _not_empty(outcome), WIDTH)


def _most_frequent(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _not_empty(streams: Sequence[Flow]) -> list[Flow]:
    return [stream for stream in streams if stream.count]


def selections(view: View) -> list[dict[str, Any]]:
    """How much of the pool each round selected, and how much of that the round before had selected too."""
    rows: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for number in view.rounds(Clusters, SelectedRows):
        is_selected = view.selected(number)
        shared = int((before & is_selected).sum()) if before is not None else None
        rows.append({"round": number, "selected": int(is_selected.sum()), "pool": len(is_selected), "shared": shared})
        before = is_selected
    return rows


def rejects(view: View) -> list[dict[str, Any]]:
    """Some of the files set aside for each reason, with pictures where they can be decoded."""
    if view.samples is None:
        return []
    examples = view.samples.reject_examples(_PER_REASON).to_pylist()
    return [
        {
            "reason": reason,
            "count": num,
            "meaning": _MEANING.get(reason, ""),
            "examples": [_reject(view, row) for row in examples if row["reason"] == reason],
        }
        for reason, num in _most_frequent(view.samples.statistics["rejected"])
    ]


def _reject(view: View, row: dict[str, Any]) -> dict[str, Any]:
    """A tile; an exact duplicate shows the same picture twice."""
    number, kept = view.pictures.add(_content(row)), row["kept_source"]
    why = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
    tile = {"source": row["source"], "name": PurePosixPath(row["source"]).name, "picture": number, "why": why}
    return tile | {"kept": kept, "kept_picture": number if kept else None}


def _content(row: dict[str, Any]) -> bytes:
    """The bytes of a reject; none if they are too many or gone."""
    if row["content"] is not None:
        return bytes(row["content"])
    if row["url"] is None or row["size"] > _MAX_BYTES:
        return b""
    try:
        return Location(row["url"], row["offset"], row["size"]).read(tries=1)
    except DataError:
        return b""


def near_duplicates(view: View) -> list[dict[str, Any]]:
    """The pairs of the last round that are least alike, by reason: if these are right, so are the others."""
    rounds = view.rounds(Duplicates)
    if not rounds:
        return []
    duplicates = view.run.by_round(Duplicates)[rounds[-1]]
    pairs = duplicates.least_alike(_PER_REASON).to_pylist()
    return [
        {
            "reason": reason,
            "count": num,
            "meaning": _MEANING.get(reason, ""),
            "examples": [_pair(view, pair) for pair in pairs if pair["reason"] == reason],
        }
        for reason, num in duplicates.statistics["reasons"].items()
    ]


def _pair(view: View, pair: dict[str, Any]) -> dict[str, Any]:
    """A tile of a dropped row and the row kept for it."""
    dropped, kept = pair["row_id"], pair["kept_row_id"]
    if pair["similarity"] is None:
        name, why = f"{pair['bits']} bits", f"signatures that differ in {pair['bits']} bits"
    else:
        name, why = f"{pair['similarity']:.3f}", f"similarity {pair['similarity']:.3f}"
    pictures = view.pictures.of(np.array([dropped]), POOL)
    pictures |= view.pictures.of(np.array([kept]), HELD_OUT if pair["held_out"] else POOL)
    tile = {"source": f"sample {dropped}", "name": name, "picture": pictures.get(dropped), "why": why}
    return tile | {"kept": f"sample {kept}", "kept_picture": pictures.get(kept)}


SECTION = Section("in", "What went in", "sections/intake.html.j2", context)
