"""report: one page that shows what a run did, made of whatever is finished.

The page is a single file without anything to fetch. It reads counts from manifests, streams tables, and samples what it
draws, so a pool of many millions costs little more than a small one.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from curation import rng
from curation.errors import DataError
from curation.files import write_atomic
from curation.hierarchy import ClusterHierarchy
from pipeline import charts, digits
from pipeline.artifacts import Manifest
from pipeline.charts import Flow, Series, Sheet
from pipeline.cluster import read_hierarchy
from pipeline.config import RunConfig
from pipeline.console import duration
from pipeline.embed import ArrowSource
from pipeline.rounds import steps
from pipeline.select import SELECTION, TRAINING
from pipeline.shard import INDEX, REJECTS
from pipeline.sources import POOL
from pipeline.stage import BEGUN
from trainers.data import SampleList
from trainers.images import decode
from trainers.train import METRICS

T = TypeVar("T")
PAGE, TEMPLATE = "report.html", "report.html.j2"
WIDTH = 1006  # of what lies inside a card of the page, in pixels
MAP_ROWS, MAP_PICTURES = 2000, 500
_PER_CLUSTER, _PER_GROUP, _PER_REASON = 12, 3, 7
_THIRD = (WIDTH - 2 * 32) // 3
_BLOCK_ROWS = 1 << 20
_MAX_LOSS_LINES, _MAX_LOSS_POINTS = 4000, 250
_MAX_FILE_BYTES = 32 * 2**20
_MEANING = {
    "duplicate": "The same bytes as a file that was kept.",
    "empty file": "Nothing in it.",
    "corrupt image": "Its bytes end early, or are no image.",
    "corrupt JPEG": "Its bytes end early, or are no JPEG.",
    "too small": "Its shorter side is under shard.min_side.",
    "too large": "More pixels than are decoded for anyone.",
    "truncated tar": "The tar ends inside it.",
    "damaged tar": "What follows in this tar cannot be read.",
}


def write(run_dir: Path) -> Path:
    """Write `report.html` into the run's directory from what is finished, and return its path."""
    run = Run.read(run_dir.expanduser().absolute())
    sheet = Sheet()
    context: dict[str, Any] = {"run": run, "notes": run.notes}
    context |= {"scores": run.scores(), "balance": run.attempt(balance, run) or []}
    context |= {"selections": run.attempt(_selections, run) or []}
    context |= {"tiles": tiles(run, context["balance"]), "lead": lead(run, context["balance"])}
    context |= {"flow": inflow(run), "rejects": run.attempt(rejects, run, sheet) or []}
    pictures = Pictures(run, sheet)
    pictured = run.pictured_rounds()
    context |= {"clusters": [c for n in pictured if (c := run.attempt(clusters, run, n, pictures))]}
    context |= {"map": run.attempt(embedding_map, run, pictured, pictures)}
    context |= {"losses": run.attempt(losses, run), "progress": progress(run), "stages": run.stage_table()}
    context |= {"sheet": sheet, "columns": charts.SHEET_COLUMNS}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"duration": duration, "bytes": _bytes}
    text = files("pipeline").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = run.directory / PAGE
    write_atomic(page, environment.from_string(text).render(context))
    return page


@dataclass(frozen=True)
class Run:
    """What a run's directory says about itself."""

    directory: Path
    config: RunConfig | None
    config_text: str
    stages: tuple[str, ...]
    manifests: dict[str, Manifest]
    """Of the finished stages."""
    seconds: dict[str, float]
    invocations: list[dict[str, Any]]
    notes: list[str]
    """What could not be read."""

    @classmethod
    def read(cls, directory: Path) -> "Run":
        notes: list[str] = []
        path = directory / "config.yaml"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        config = None
        try:
            config = RunConfig.model_validate(yaml.safe_load(text))
            names = [step.name for step in steps(config)]
        except (yaml.YAMLError, ValidationError, DataError):
            notes.append("config.yaml cannot be read by this version; the stages shown are those that were begun.")
            names = sorted(p.parent.relative_to(directory).as_posix() for p in directory.glob(f"*/{BEGUN}"))
            names += sorted(p.parent.relative_to(directory).as_posix() for p in directory.glob(f"*/*/{BEGUN}"))
        manifests = {}
        for name in names:
            try:
                manifests[name] = Manifest.read(directory / name)
            except DataError as error:
                if (directory / name / "manifest.json").exists():
                    notes.append(str(error))
        events = [json.loads(line) for line in _whole_lines(directory / "events.jsonl")]
        seconds = {event["stage"]: float(event["seconds"]) for event in events}
        try:
            invocations = list(json.loads((directory / "provenance.json").read_text()))
        except (OSError, ValueError):  # a page without it is better than none
            invocations = []
        return cls(directory, config, text, tuple(names), manifests, seconds, invocations, notes)

    def attempt(self, function: Callable[..., T], *args: object) -> T | None:
        """`function(*args)`; if a file of the run is missing or damaged, None and a note on the page."""
        try:
            return function(*args)
        except (DataError, OSError, pa.ArrowInvalid) as error:
            self.notes.append(str(error))
            return None

    def rounds(self, *stages: str) -> list[int]:
        """Numbers of the rounds in which all of `stages` are finished."""
        numbers = {int(name.split("/")[0][6:]) for name in self.stages if name.startswith("round-")}
        return sorted(n for n in numbers if all(f"round-{n}/{stage}" in self.manifests for stage in stages))

    def pictured_rounds(self) -> list[int]:
        """The first clustered round and the two newest."""
        numbers = self.rounds("embed", "cluster")
        return numbers[:1] + numbers[1:][-2:]

    def statistics(self, stage: str) -> dict[str, Any]:
        return self.manifests[stage].statistics if stage in self.manifests else {}

    def scores(self) -> list[tuple[str, dict[str, Any]]]:
        """Evaluations in order, the baseline first, with what to call them."""
        names = [("baseline", "baseline"), *((f"round {n}", f"round-{n}") for n in self.rounds("evaluate"))]
        found = [(name, self.statistics(f"{place}/evaluate")) for name, place in names]
        return [(name, statistics) for name, statistics in found if statistics]

    def baseline_name(self) -> str:
        encoder = self.config.embed.encoder if self.config else None
        if encoder is None:
            return "the encoder it began with"
        return (
            "raw pixels"
            if encoder.type == "pixels"
            else f"{getattr(encoder, 'model', encoder.type)}, the encoder it began with"
        )

    def selected(self, number: int) -> np.ndarray:
        """(N,) bool: which rows of the pool a round selected. A byte a row."""
        chosen = np.zeros(int(self.statistics("samples").get("pool", 0)), dtype=bool)
        for batch in pq.ParquetFile(self.directory / f"round-{number}/select/{SELECTION}").iter_batches(columns=["row_id"]):
            chosen[batch.column("row_id").to_numpy()] = True
        return chosen

    def stage_table(self) -> list[dict[str, Any]]:
        longest = max(self.seconds.values(), default=0) or 1
        rows = []
        for name in self.stages:
            manifest = self.manifests.get(name)
            seconds = self.seconds.get(name)
            begun = (self.directory / name / BEGUN).exists()
            rows.append(
                {
                    "name": name,
                    "state": "finished" if manifest else "begun" if begun else "to do",
                    "seconds": seconds,
                    "share": (seconds or 0) / longest,
                    "made": _made(manifest) if manifest else "",
                    "bytes": sum(part.num_bytes for part in manifest.parts) if manifest else None,
                    "fingerprint": manifest.fingerprint if manifest else "",
                }
            )
        return rows


def _made(manifest: Manifest) -> str:
    s = manifest.statistics
    says: dict[str, Callable[[], str]] = {
        "raw images": lambda: f"{s['files']:,} files",
        "samples": lambda: f"{s['pool'] + s['held_out']:,} samples",
        "embeddings": lambda: f"{s['rows']:,} \u00d7 {s['dim']:,} features",
        "clusters": lambda: f"{s['rows']:,} rows → " + " → ".join(f"{level['clusters']:,}" for level in s["levels"]),
        "selection": lambda: f"{s['selected']:,} of {s['pool']:,} samples",
        "training": lambda: f"{s['steps']:,} steps, {s['samples_seen']:,} samples seen",
        "evaluation": lambda: f"kNN {s['knn']:.1%}" if "knn" in s else f"RankMe {s['rankme']:.1f}",
    }
    return says[manifest.kind]() if manifest.kind in says else ""


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that may be missing, or cut short by a kill."""
    if path.is_file():
        with path.open() as file:
            yield from (line for line in file if line.endswith("}\n"))


def _bytes(num: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.0f} {unit}" if unit == "B" else f"{num:.1f} {unit}"
        num /= 1000
    return f"{num:.1f} TB"


def lead(run: Run, found: Sequence[dict[str, Any]]) -> str:
    """What came out, in a sentence or two."""
    if not run.manifests:
        return "Nothing is finished yet. This page fills up as the stages of the run finish; write it again to see them."
    said = []
    scores = run.scores()
    trained = [(name, s) for name, s in scores if name != "baseline"]
    base = dict(scores).get("baseline")
    if trained and "knn" in trained[-1][1]:
        name, last = trained[-1]
        asked = f"{last['queries']:,} labelled test images"
        text = f"After {name}, the nearest neighbours in its features classify {last['knn']:.1%} of {asked} correctly"
        if base and "knn" in base:
            gain = 100 * (last["knn"] - base["knn"])
            text += f", {abs(gain):.1f} points {'above' if gain >= 0 else 'below'} {run.baseline_name()} ({base['knn']:.1%})"
        said.append(text + ".")
    elif trained:
        name, last = trained[-1]
        before = f", from {base['rankme']:.1f} for {run.baseline_name()}" if base else ""
        said.append(f"After {name} the features have an effective rank (RankMe) of {last['rankme']:.1f}{before}.")
    if found:
        part = found[-1]["charts"][0]
        share = found[-1]["selected"] / max(found[-1]["pool"], 1)
        even = "more evenly" if part["tv_selected"] < part["tv_pool"] else "no more evenly"
        said.append(
            f"The last selection keeps {share:.0%} of the pool and covers its {part['of']} {even}: their distance from an "
            f"even spread goes from {part['tv_pool']:.2f} to {part['tv_selected']:.2f}."
        )
    if not said:
        counts = run.statistics("samples")
        said.append(f"{counts['pool']:,} samples are in the pool." if counts else "The first stage is finished.")
    return " ".join(said)


def tiles(run: Run, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Key figures: name, value, how it compares, and whether that is good (1), bad (-1) or neither (0)."""
    result: list[dict[str, Any]] = []

    def add(name: str, value: str, note: str, tone: float = 0) -> None:
        result.append({"name": name, "value": value, "note": note, "tone": int(np.sign(tone))})

    scores = run.scores()
    base = dict(scores).get("baseline", {})
    last = scores[-1][1] if scores else {}
    is_trained = bool(scores) and scores[-1][0] != "baseline"
    for key, name in (("knn", "kNN accuracy"), ("linear", "Linear probe")):
        if key in last and is_trained and key in base:
            gain = last[key] - base[key]
            chance = 2 * np.sqrt(last[key] * (1 - last[key]) / max(last["queries"], 1))  # two standard errors
            note = f"{100 * gain:+.1f} points from the baseline's {base[key]:.1%}"
            add(
                name, f"{last[key]:.1%}", note + (", within chance" if abs(gain) < chance else ""), gain * (abs(gain) >= chance)
            )
        elif key in last:
            add(name, f"{last[key]:.1%}", "of the baseline" if base else "")
    if "rankme" in last:
        note = f"{base['rankme']:.1f} of {base['dim']} in the baseline" if is_trained and base else "effective rank"
        add("RankMe", f"{last['rankme']:.1f}", f"of {last['dim']} dimensions; {note}")
    if found:
        parts = {part["of"]: part for part in (found[-1]["charts"][0], found[-1]["charts"][-1])}
        for of, part in parts.items():
            note = f"TV; {part['tv_pool']:.2f} in the pool"
            add(f"Unevenness, {of}", f"{part['tv_selected']:.2f}", note, part["tv_pool"] - part["tv_selected"])
        add("Selected", f"{found[-1]['selected']:,}", f"of {found[-1]['pool']:,} in the pool")
    elif counts := run.statistics("samples"):
        add("In the pool", f"{counts['pool']:,}", f"of {counts['files']:,} files")
    return result


def inflow(run: Run) -> Any:
    """The flow from files to the newest selection; None before sharding."""
    counts = run.statistics("samples")
    if not counts:
        return None
    streams = [Flow("in the pool", counts["pool"], "pool"), Flow("held out, for evaluation only", counts["held_out"], "held")]
    rejected = sorted(counts["rejected"].items(), key=lambda item: -item[1])
    streams += [Flow(f"set aside: {kind}", num, "bad") for kind, num in rejected]
    chosen = []
    if numbers := run.rounds("select"):
        num = run.statistics(f"round-{numbers[-1]}/select")["selected"]
        chosen = [Flow(f"selected in round {numbers[-1]}", num, "sel"), Flow("not selected", counts["pool"] - num, "pool")]
    return charts.flow(counts["files"], [s for s in streams if s.count], chosen, WIDTH)


def _selections(run: Run) -> list[dict[str, Any]]:
    """How much of the pool each round selected, and how much of that the round before had selected too."""
    result: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for number in run.rounds("select"):
        chosen = run.selected(number)
        shared = int((before & chosen).sum()) if before is not None else None
        result.append({"round": number, "selected": int(chosen.sum()), "pool": len(chosen), "shared": shared})
        before = chosen
    return result


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


def balance(run: Run) -> list[dict[str, Any]]:
    """For each round: how classes and clusters are filled, before and after selection."""
    result = []
    for number in run.rounds("cluster", "select"):
        statistics = run.statistics(f"round-{number}/select")
        levels = statistics["cluster_balance"]
        classes = run.statistics(f"round-{number}/evaluate").get("class_balance")
        columns = min(len(levels) + (classes is not None), 3)
        width = (WIDTH - 32 * (columns - 1)) // columns if columns > 1 else 620
        drawn = []
        if classes:
            pool, chosen = np.array(classes["pool"]), np.array(classes["selected"])
            order = np.argsort(-pool, kind="stable")
            names = [_label(classes["classes"][index]) for index in order]
            chart = charts.bars(names, pool[order], chosen[order], width)
            drawn.append({"of": "classes", "num": len(names), "chart": chart, **_tv(classes)})
        for name, measured in levels.items():
            sizes = np.load(run.directory / f"round-{number}/cluster/{name.replace('_', '-')}/sizes.npy", mmap_mode="r")
            selected = _selected_sizes(run, number, name, len(sizes))
            chart = charts.curves(np.asarray(sizes), selected, width, "clusters, largest first")
            drawn.append({"of": f"level-{name[6:]} clusters", "num": len(sizes), "chart": chart, **_tv(measured)})
        result.append(
            {"round": number, "charts": drawn, "columns": columns, **{k: statistics[k] for k in ("pool", "selected")}}
        )
    return result


def _tv(measured: dict[str, Any]) -> dict[str, float]:
    return {name: float(measured[name]) for name in ("tv_pool", "tv_selected")}


def _label(name: str | None) -> str:
    return "no label" if name in (None, "None") else str(name)


def _selected_sizes(run: Run, number: int, level: str, num: int) -> np.ndarray:
    """(K,) int64: selected rows of each cluster."""
    sizes = np.zeros(num, dtype=np.int64)
    for batch in pq.ParquetFile(run.directory / f"round-{number}/select/{TRAINING}").iter_batches(columns=[level]):
        sizes += np.bincount(batch.column(0).to_numpy(), minlength=num)
    return sizes


class Pictures:
    """Samples of the pool, read a few at a time, and their thumbnails on the sheet."""

    def __init__(self, run: Run, sheet: Sheet) -> None:
        self._samples, self._sheet, self._known = run.directory / "samples", sheet, dict[int, int]()
        parts = run.manifests["samples"].parts if "samples" in run.manifests else ()
        self._indexes = [part for part in parts if part.path.startswith(f"{INDEX}/{POOL}-")]
        self._ends = np.cumsum([part.num_rows for part in self._indexes])

    def rows(self, row_ids: np.ndarray) -> pa.Table:
        """The index at ascending `row_ids`, which count the pool's rows. Reads only the files they are in."""
        which = np.searchsorted(self._ends, row_ids, side="right")
        tables = []
        for number in np.unique(which):
            part = self._indexes[number]
            columns = ["row_id", "shard", "offset", "size", "source", "label"]
            table = pq.read_table(self._samples / part.path, columns=columns)
            tables.append(table.take(row_ids[which == number] - (self._ends[number] - part.num_rows)))
        return pa.concat_tables(tables)

    def of(self, row_ids: np.ndarray) -> dict[int, int]:
        """The number on the sheet of each of `row_ids` that can be read."""
        wanted = np.array([row for row in np.unique(row_ids) if int(row) not in self._known], dtype=np.int64)
        if len(wanted):
            samples = SampleList.of(self.rows(wanted), self._samples)
            for index, row in enumerate(wanted.tolist()):
                try:
                    self._known[row] = self._sheet.add(samples.image(index))
                except DataError:  # a shard was moved away: the rest of the page does without
                    continue
        return {row: self._known[row] for row in map(int, row_ids) if row in self._known}


def clusters(run: Run, number: int, pictures: Pictures) -> dict[str, Any]:
    """Pictures from the largest, middle and smallest clusters of each level of one round."""
    place = run.directory / f"round-{number}"
    hierarchy, row_ids = read_hierarchy(place / "cluster")
    normalize = bool(run.manifests[f"round-{number}/cluster"].settings.get("normalize", False))
    source = ArrowSource.open(place / "embed", normalize=normalize)
    has_selection = bool(run.rounds("select").count(number))
    chosen = run.selected(number) if has_selection else np.zeros(len(row_ids), dtype=bool)
    levels = []
    for depth, level in enumerate(hierarchy.levels, start=1):
        by_size = np.argsort(-level.sizes, kind="stable")
        by_size = by_size[level.sizes[by_size] > 0]
        counts = _selected_sizes(run, number, f"level_{depth}", len(level.sizes)) if has_selection else None
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


def _nearest(hierarchy: ClusterHierarchy, depth: int, wanted: np.ndarray, source: ArrowSource) -> dict[int, np.ndarray]:
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
    labels = [_label(label) for label in index["label"].to_pylist()]
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
        source = ArrowSource.open(run.directory / f"round-{number}/embed", normalize=True)
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


def losses(run: Run) -> dict[str, Any] | None:
    """Training loss by step, a line a round, also of a training that is not finished."""
    series: list[Series] = []
    for number in run.rounds():
        path = run.directory / f"round-{number}/train/{METRICS}"
        points = np.array(list(_losses(path)), dtype=np.float64).reshape(-1, 2)
        if len(points) > 1:
            bins = np.array_split(points, min(len(points), _MAX_LOSS_POINTS))
            means = np.array([part.mean(axis=0) for part in bins])
            style = f"r{len(series) % 6}"
            series.append(Series(f"round {number}", style, means[:, 0].tolist(), means[:, 1].tolist()))
    return {"chart": charts.lines(series, _THIRD, "step"), "series": series} if series else None


def _losses(path: Path) -> Iterator[tuple[float, float]]:
    if path.is_file():
        first = len(next(_whole_lines(path), " "))
        stride = max(1, path.stat().st_size // first // _MAX_LOSS_LINES)
        for line in itertools.islice(_whole_lines(path), 0, None, stride):
            record = json.loads(line)
            if np.isfinite(record["loss"]):
                yield record["step"], record["loss"]


def progress(run: Run) -> list[dict[str, Any]]:
    """Scores by round, the baseline first."""
    scores = run.scores()
    names = [name for name, _ in scores]
    result = []
    for title, keys, show in (
        ("Accuracy on test images", (("knn", "kNN", "sel"), ("linear", "linear probe", "r0")), _percent),
        ("Effective rank (RankMe)", (("rankme", "RankMe", "r1"),), _tenths),
    ):
        series: list[Series] = []
        for key, name, style in keys:
            have = [(place, s[key]) for place, (_, s) in enumerate(scores) if key in s]
            if have:
                series.append(Series(name, style, [x for x, _ in have], [round(y, 6) for _, y in have]))
        if series and len(names) > 1:
            result.append({"title": title, "series": series, "chart": charts.dots(series, names, _THIRD, show)})
    return result


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _tenths(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
