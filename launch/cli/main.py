"""The command line."""

import sys

import typer

from launch.cli import runs, stages

app = typer.Typer(
    name="windrow",
    help="From a heap of raw images to a curated dataset and a pretrained encoder, in rounds.\n\n"
    "Start with `windrow run quickstart`. A run is a directory; the same command continues it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    runs.run,
    runs.plan,
    runs.status,
    runs.report,
    runs.doctor,
    stages.shard,
    stages.embed,
    stages.cluster,
    stages.dedup,
    stages.label,
    stages.select,
    stages.train,
    stages.evaluate,
):
    app.command()(command)


def main() -> None:
    """Entry point: a user's mistake ends in a sentence and code 2, a bug in a traceback and code 1.

    Work that a signal stopped and that was saved ends with code 75, which sysexits.h calls a temporary failure: try again.
    """
    from curation.base.errors import UserError
    from pipeline.errors import StoppedError

    try:
        app()
    except UserError as error:
        print(f"windrow: {error}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as stopped:
        print(f"windrow: {stopped} The same command continues.", file=sys.stderr)
        sys.exit(75)
