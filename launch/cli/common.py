"""The words that several commands share. Heavy imports wait inside the commands, so that help is instant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.runtime.inline import InlineExecutor
    from pipeline.runtime.ray_executor import RayExecutor
    from pipeline.stages.stage import Stage

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings as key=value, for example train.epochs=10. Values are YAML."),
]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a recipe.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Embeddings = Annotated[
    Path,
    typer.Argument(metavar="EMBEDDINGS", help="What `windrow embed` wrote, or .npy, Arrow or Parquet files of your own."),
]
Clusters = Annotated[Path, typer.Argument(metavar="CLUSTERS", help="What `windrow cluster` wrote.")]
Scores = Annotated[Path | None, typer.Option(help="A .npy array with a number for each row.")]
Samples = Annotated[Path, typer.Argument(metavar="SAMPLES", help="What `windrow shard` wrote.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run everything in this process, without Ray: breakpoints work.")]


def executor(inline: bool) -> "InlineExecutor | RayExecutor":
    """What runs the functions of stages; a context manager."""
    from pipeline.runtime.console import Console

    if inline:
        from pipeline.runtime.inline import InlineExecutor

        return InlineExecutor(Console())
    from pipeline.runtime.ray_executor import RayExecutor

    return RayExecutor(Console())


def make(stage: "Stage", out: Path, inputs: dict[str, Path | None], *, inline: bool) -> None:
    """Bring a stage's artifact in `out` into being; inputs that are None are left out."""
    from pipeline.rounds.run import run_stage
    from pipeline.storage.lease import locked

    out = out.expanduser().absolute()
    # Links are followed once: that to the best encoder may lead elsewhere before the stage is finished.
    paths = {role: path.expanduser().resolve() for role, path in inputs.items() if path}
    with locked(out), executor(inline) as runs:
        run_stage(stage, out, paths, runs)
