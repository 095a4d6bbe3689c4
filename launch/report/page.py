"""report: one page that shows what a run did, made of whatever is finished.

The page is a single file without anything to fetch. It reads counts from manifests, streams tables, and samples what it
draws, so a pool of many millions costs little more than a small one.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from curation.base.files import write_atomic
from curation.measures.agreement import churn, contingency, nmi
from launch.report import charts
from launch.report.charts import WIDTH, Flow, Series, Sheet, short
from launch.report.pictures import Pictures, clusters, embedding_map, label_name, near_duplicates, rejects
from pipeline.rounds.record import Run, whole_lines
from pipeline.runtime.console import duration, size
from pipeline.stages.cluster import read_hierarchy
from trainers.engine.layout import EVALUATIONS, METRICS

PAGE, TEMPLATE = "report.html", "report.html.j2"
_THIRD = (WIDTH - 2 * 32) // 3
_MAX_LOSS_LINES, _MAX_LOSS_POINTS = 4000, 250


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
    last = run.rounds("dedup")[-1:]
    context |= {"duplicates": [d for n in last for d in run.attempt(near_duplicates, run, n, pictures) or []]}
    context |= {"clusterings": run.attempt(clusterings, run) or []}
    context |= {"map": run.attempt(embedding_map, run, pictured, pictures)}
    context |= {"losses": run.attempt(losses, run), "evaluations": run.attempt(evaluations, run) or []}
    context |= {"progress": progress(run), "stages": run.stage_table()}
    context |= {"sheet": sheet, "columns": charts.SHEET_COLUMNS}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"duration": duration, "bytes": size}
    text = files("launch.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = run.directory / PAGE
    write_atomic(page, environment.from_string(text).render(context))
    return page


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
    streams += [Flow("examples to look for", counts.get("queries", 0), "held")]
    rejected = sorted(counts["rejected"].items(), key=lambda item: -item[1])
    streams += [Flow(f"set aside: {kind}", num, "bad") for kind, num in rejected]
    chosen = []
    if numbers := run.rounds("select"):
        num = run.statistics(f"round-{numbers[-1]}/select")["selected"]
        doubled = run.statistics(f"round-{numbers[-1]}/dedup").get("dropped", 0)
        chosen = [
            Flow(f"selected in round {numbers[-1]}", num, "sel"),
            Flow("not selected", counts["pool"] - num - doubled, "pool"),
            Flow("near-duplicates", doubled, "bad"),
        ]
    return charts.flow(counts["files"], [s for s in streams if s.count], [s for s in chosen if s.count], WIDTH)


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
            names = [label_name(classes["classes"][index]) for index in order]
            chart = charts.bars(names, pool[order], chosen[order], width)
            drawn.append({"of": "classes", "num": len(names), "chart": chart, **_tv(classes)})
        for name, measured in levels.items():
            sizes = np.load(run.directory / f"round-{number}/cluster/{name.replace('_', '-')}/sizes.npy", mmap_mode="r")
            selected = run.selected_sizes(number, int(name.removeprefix("level_")), len(sizes))
            chart = charts.curves(np.asarray(sizes), selected, width, "clusters, largest first")
            part = {"of": f"level-{name[6:]} clusters", "num": len(sizes), "chart": chart, **_tv(measured)}
            drawn.append(part | {"covered": measured.get("covered")})
        known = {name: statistics.get(name) for name in ("pool", "selected", "vendi", "distance_to_selected")}
        result.append({"round": number, "charts": drawn, "columns": columns, **known})
    return result


def _tv(measured: dict[str, Any]) -> dict[str, float]:
    return {name: float(measured[name]) for name in ("tv_pool", "tv_selected")}


def clusterings(run: Run) -> list[dict[str, Any]]:
    """What is known of each level of each round's clusters, and how alike they are to those of the round before."""
    result = []
    for place, number in enumerate(numbers := run.rounds("cluster")):
        changes = _changes(run, numbers[place - 1], number) if place else []
        classes = run.statistics(f"round-{number}/evaluate").get("class_agreement", {})
        for index, level in enumerate(run.statistics(f"round-{number}/cluster")["levels"]):
            found = {"round": number, "level": index + 1, **level} | (changes[index] if index < len(changes) else {})
            if agreed := classes.get(f"level_{index + 1}"):
                found["class_ami"] = agreed["ami"]
            result.append(found)
    return result


def _changes(run: Run, before: int, after: int) -> list[dict[str, float]]:
    """How much the clusters of the pool changed between two rounds, for each level that both have."""
    (old, old_ids), (new, new_ids) = (read_hierarchy(run.directory / f"round-{number}/cluster") for number in (before, after))
    if not np.array_equal(old_ids, new_ids):
        return []
    both = range(1, min(len(old.levels), len(new.levels)) + 1)
    tables = (contingency(old.labels(level), new.labels(level)) for level in both)
    return [{"nmi": nmi(table), "churn": churn(table)} for table in tables]


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
        first = len(next(whole_lines(path), " "))
        stride = max(1, path.stat().st_size // first // _MAX_LOSS_LINES)
        for line in itertools.islice(whole_lines(path), 0, None, stride):
            record = json.loads(line)
            if np.isfinite(record["loss"]):
                yield record["step"], record["loss"]


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Scores of the encoders on their way by step, a line a round, also of a training that is not finished."""
    result = []
    for key, title, show in (("knn", "kNN while training", _percent), ("rankme", "RankMe while training", short)):
        series: list[Series] = []
        for number in run.rounds():
            path = run.directory / f"round-{number}/train/{EVALUATIONS}"
            points = [(row["step"], row[key]) for row in map(json.loads, whole_lines(path)) if key in row]
            if len(points) > 1:
                steps, scores = zip(*points, strict=True)
                series.append(Series(f"round {number}", f"r{len(series) % 6}", steps, scores))
        if series:
            result.append({"title": title, "series": series, "chart": charts.lines(series, _THIRD, "step", show=show)})
    return result


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
