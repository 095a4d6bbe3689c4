"""Commands on a whole run."""

import traceback
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.common import ConfigArgument, Inline, RunArgument, Settings, executor


def run(
    config: ConfigArgument,
    settings: Settings = None,
    redo: Annotated[bool, typer.Option("--redo", help="Set work for other settings aside and make it again.")] = False,
    inline: Inline = False,
) -> None:
    """Run the whole loop, or what is missing of it.

    windrow run quickstart
    windrow run cifar10 source.path=~/cifar10 rounds=3
    windrow run runs/cifar10/config.yaml
    """
    from launch import provenance
    from launch.config.load import load_run, save_run
    from pipeline.rounds.graph import steps
    from pipeline.rounds.run import run_steps
    from pipeline.storage.lease import locked

    loaded = load_run(config, settings or [])

    def begin() -> None:
        save_run(loaded)
        provenance.record(loaded.run_dir)

    with locked(loaded.run_dir), executor(inline) as runs:
        run_steps(steps(loaded), loaded.run_dir, runs, redo=redo, begin=begin)
        try:
            from launch.report import page

            runs.console.say(f"The report is at {page.write(loaded.run_dir)}")
        except Exception:  # the work is done, whatever is wrong with the page about it
            runs.console.say(f"The run is finished; its report could not be written:\n{traceback.format_exc()}")


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, a recipe's name, or embeddings of your own.")],
    settings: Settings = None,
) -> None:
    """Tell what a run would do: stages, samples, parts, bytes, FLOPs, and an estimate of the time. Runs nothing.

    windrow plan cifar10 source.path=~/cifar10
    windrow plan embeddings.npy    how many clusters suit them, and what that costs
    """
    from curation.embeddings.files import SUFFIXES
    from launch.config.load import load_run
    from launch.plan import show, show_clustering

    path = Path(config).expanduser()
    inside = path.iterdir() if path.is_dir() else [path] if path.is_file() else []
    if any(file.suffix in SUFFIXES for file in inside):
        show_clustering(path)
    else:
        show(load_run(config, settings or []))


def status(run_dir: RunArgument) -> None:
    """Show how far a run is."""
    from launch.config.load import load_run
    from launch.status import show_status

    show_status(load_run(str(_config_of(run_dir)), run_dir=run_dir))


def report(run_dir: RunArgument) -> None:
    """Write RUN/report.html anew from what is finished so far."""
    from launch.report.page import write

    _config_of(run_dir)
    typer.echo(write(run_dir))


def doctor() -> None:
    """Check this machine: Python, libraries, accelerators, memory, disk, Ray."""
    from launch.doctor import examine

    raise typer.Exit(examine())


def _config_of(run_dir: Path) -> Path:
    from curation.base.errors import DataError

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise DataError(f"{run_dir} is no run: it has no config.yaml. Give the directory that `windrow run` wrote.")
    return path
