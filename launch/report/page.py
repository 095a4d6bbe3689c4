"""The report: one page that shows what a run did, made of whatever is finished.

The page is a single file without anything to fetch. It reads counts from manifests, streams tables, and samples what it
draws, so a pool of many millions costs little more than a small one.
"""

from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from curation.base.files import write_atomic
from launch.report.sections import balance, clusters, curves, embedding_map, intake, made, summary
from launch.report.sections.section import Section
from launch.report.sheet import SHEET_COLUMNS
from launch.report.view import View
from pipeline.rounds.record import RunRecord
from pipeline.runtime.console import duration, size

PAGE, TEMPLATE = "report.html", "page.html.j2"
SUMMARY = summary.SECTION
"""In the head of the page."""
SECTIONS = (
    intake.SECTION,
    balance.SECTION,
    clusters.SECTION,
    embedding_map.SECTION,
    curves.SECTION,
    made.SECTION,
)
"""In the order of the page."""


def write(run_dir: Path) -> Path:
    """Write `report.html` into the run's directory from what is finished, and return its path."""
    view = View(RunRecord.read(run_dir.expanduser().absolute()))
    environment = _environment(view)
    shown = [section for section in SECTIONS if view.finished or section.is_always_shown]
    context = {
        "summary": _render(environment, SUMMARY, view),
        "sections": shown,
        "bodies": [_render(environment, section, view) for section in shown],
        "sheet": view.sheet,
    }
    page = view.run.directory / PAGE
    write_atomic(page, environment.get_template(TEMPLATE).render(context))  # after all sections, which leave notes and pictures
    return page


def _environment(view: View) -> jinja2.Environment:
    """What all templates share: how they are found, the run, and the filters for times and sizes."""
    loader = jinja2.FunctionLoader(lambda name: files("launch.report").joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, loader=loader
    )
    environment.globals |= {"run": view.run, "finished": view.finished, "columns": SHEET_COLUMNS}
    environment.filters |= {"duration": duration, "bytes": size}
    return environment


def _render(environment: jinja2.Environment, section: Section, view: View) -> Markup:
    """The HTML of a section, from a context of its own."""
    return Markup(environment.get_template(section.template).render(section.context(view)))  # noqa: S704 - autoescaped
