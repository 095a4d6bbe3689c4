"""The report: one page that shows what a run did, made of whatever is finished.

The page is a single file without anything to fetch. It reads counts from manifests, streams tables, and samples what it
draws, so a pool of many millions costs little more than a small one.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from curation.base.files import write_atomic
from launch.report import charts
from launch.report.sections import balance, clusters, curves, embedding_map, intake, made, summary
from launch.report.view import View
from pipeline.rounds.record import RunRecord
from pipeline.runtime.console import duration, size

PAGE, TEMPLATE = "report.html", "page.html.j2"
SECTIONS = (
    intake.SECTION,
    balance.SECTION,
    clusters.SECTION,
    embedding_map.SECTION,
    curves.SECTION,
    made.SECTION,
)


def write(run_dir: Path) -> Path:
    """Write `report.html` into the run's directory from what is finished, and return its path."""
    view = View(RunRecord.read(run_dir.expanduser().absolute()))
    run = view.run
    finished = [step.name for step in run.steps if step.manifest]
    context: dict[str, Any] = {"run": run, "sections": SECTIONS, "columns": charts.SHEET_COLUMNS}
    context |= {"finished": finished, "missing": [step.name for step in run.steps if not step.manifest]}
    context |= {"seconds": sum(step.seconds or 0 for step in run.steps)}
    for section in SECTIONS:
        context |= section.context(view)
    context |= summary.context(view, context["balance"])
    context |= {"notes": run.notes, "sheet": view.sheet}
    loader = jinja2.FunctionLoader(lambda name: files("launch.report").joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, loader=loader
    )
    environment.filters |= {"duration": duration, "bytes": size}
    page = run.directory / PAGE
    write_atomic(page, environment.get_template(TEMPLATE).render(context))
    return page
