"""The command line. Heavy imports wait inside the verbs, so that help is instant."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.stages.stage import Stage

SETTINGS = "Settings as key=value, for example train.epochs=10. Values are YAML."

app = typer.Typer(
    name="windrow",
    help="From a heap of raw images to a curated dataset and a pretrained encoder, in rounds.\n\n"
    "Start with `windrow run quickstart`. A run is a directory; the same command continues it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a recipe.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=SETTINGS)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Embeddings = Annotated[
    Path,
    typer.Argument(metavar="EMBEDDINGS", help="What `windrow embed` wrote, or .npy, Arrow or Parquet files of your own."),
]
Clusters = Annotated[Path, typer.Argument(metavar="CLUSTERS", help="What `windrow cluster` wrote.")]
Scores = Annotated[Path | None, typer.Option(help="A .npy array with a number for each row.")]
Samples = Annotated[Path, typer.Argument(metavar="SAMPLES", help="What `windrow shard` wrote.")]


@app.command()
def run(
    config: ConfigArgument,
    settings: Settings = None,
    redo: Annotated[bool, typer.Option("--redo", help="Set work for other settings aside and make it again.")] = False,
) -> None:
    """Run the whole loop, or what is missing of it.

    windrow run quickstart
    windrow run cifar10 source.path=~/cifar10 rounds=3
    windrow run runs/cifar10/config.yaml
    """
    from launch import provenance
    from launch.config.load import load_run, save_run
    from launch.report import page as report_page
    from pipeline.rounds.graph import run as run_rounds
    from pipeline.runtime.console import Console
    from pipeline.runtime.ray_executor import Runtime
    from pipeline.storage.lease import locked

    loaded = load_run(config, settings or [])
    console = Console()

    def begin() -> None:
        save_run(loaded)
        provenance.record(loaded.run_dir)

    with locked(loaded.run_dir), Runtime(console) as runtime:
        run_rounds(loaded, runtime, redo=redo, begin=begin)
        page = report_page.write(loaded.run_dir)
    console.say(f"The report is at {page}")


@app.command()
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


@app.command()
def status(run_dir: RunArgument) -> None:
    """Show how far a run is."""
    from launch.config.load import load_run
    from launch.plan import show_status

    show_status(load_run(str(_config_of(run_dir)), [f"run_dir='{run_dir.absolute()}'"]))


@app.command()
def report(run_dir: RunArgument) -> None:
    """Write RUN/report.html anew from what is finished so far."""
    from launch.report.page import write

    _config_of(run_dir)
    typer.echo(write(run_dir))


@app.command()
def doctor() -> None:
    """Check this machine: Python, libraries, accelerators, memory, disk, Ray."""
    from launch.doctor import examine

    raise typer.Exit(examine())


@app.command()
def shard(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of images, a tar, or a folder of tars.")],
    out: Out,
    settings: Settings = None,
) -> None:
    """Images to WebDataset shards and the index of their samples. Settings: those of the section `shard`."""
    from launch.config.load import check, parse_overrides
    from pipeline.config import ImagesConfig, ShardConfig
    from pipeline.stages.shard import Shard

    config = check(ShardConfig, parse_overrides(settings or []), of="shard")
    _run_stage(Shard(config, ImagesConfig(path=source.expanduser().absolute())), out, {})


@app.command()
def embed(
    samples: Samples,
    out: Out,
    settings: Settings = None,
    encoder: Annotated[Path | None, typer.Option(help="What `windrow train` wrote, or `best` in it; else encoder.*.")] = None,
    seed: Seed = 0,
) -> None:
    """Shards to embeddings. Settings: those of the section `embed`, for example encoder.type=timm encoder.model=resnet18.

    encoder.weights=FILE.safetensors starts from weights of your own, encoder.pretrained=true from timm's.
    """
    from launch.config.load import check, parse_overrides
    from pipeline.config import EmbedConfig
    from pipeline.stages.embed import Embed

    config = check(EmbedConfig, parse_overrides(settings or []), of="embed")
    _run_stage(Embed(config, seed, has_encoder=encoder is not None), out, {"samples": samples, "encoder": encoder})


@app.command()
def cluster(
    embeddings: Embeddings,
    out: Out,
    settings: Settings = None,
    seed: Seed = 0,
) -> None:
    """Embeddings to a hierarchy of clusters. Settings: those of the section `cluster`, for example levels=[1000,100]."""
    from curation.kmeans.config import ClusterConfig
    from launch.config.load import check, parse_overrides
    from pipeline.stages.cluster import Cluster

    config = check(ClusterConfig, parse_overrides(settings or []), of="cluster")
    _run_stage(Cluster(config, seed), out, {"embeddings": embeddings})


@app.command()
def dedup(
    embeddings: Embeddings,
    clusters: Clusters,
    out: Out,
    settings: Settings = None,
    samples: Annotated[Path | None, typer.Option(help="What `windrow shard` wrote: perceptual hashes are used too.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Embeddings of what is measured on: nothing like it stays.")] = None,
    edges: Annotated[Path | None, typer.Option(help="An earlier result, to try a stricter setting on its pairs.")] = None,
    scores: Scores = None,
) -> None:
    """Find near-duplicates among clustered embeddings. Settings: those of the section `dedup`, for example similarity=0.9."""
    from curation.dedup.config import DedupConfig
    from launch.config.load import check, parse_overrides
    from pipeline.stages.dedup import Dedup

    config = check(DedupConfig, parse_overrides(settings or []), of="dedup")
    given = {"embeddings": embeddings, "clusters": clusters, "samples": samples, "held_out": held_out}
    _run_stage(Dedup(config), out, given | {"edges": edges, "scores": scores})


@app.command()
def select(
    clusters: Clusters,
    out: Out,
    settings: Settings = None,
    samples: Annotated[Path | None, typer.Option(help="What `windrow shard` wrote: a training list is written too.")] = None,
    duplicates: Annotated[Path | None, typer.Option(help="What `windrow dedup` wrote: those rows are left out.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="What was clustered, for strategies that compare rows.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Embeddings of what to look for, for strategy=retrieval.")] = None,
    scores: Scores = None,
    seed: Seed = 0,
) -> None:
    """Clusters to a selection. Settings: those of the section `select`, for example strategy=balanced fraction=0.3."""
    from pydantic import TypeAdapter

    from curation.selectors.config import SelectConfig
    from launch.config.load import check, parse_overrides
    from pipeline.stages.select import Select

    chosen = {"strategy": "balanced", **parse_overrides(settings or [])}
    config: Any = check(TypeAdapter(SelectConfig), chosen, of="select")
    given = {
        "clusters": clusters,
        "samples": samples,
        "duplicates": duplicates,
        "embeddings": embeddings,
        "queries": queries,
        "scores": scores,
    }
    _run_stage(Select(config, seed), out, given)


@app.command()
def train(
    samples: Samples,
    selection: Annotated[Path, typer.Argument(metavar="SELECTION", help="What `windrow select` wrote.")],
    out: Out,
    settings: Settings = None,
    previous: Annotated[Path | None, typer.Option(help="A finished training to start from.")] = None,
    seed: Seed = 0,
) -> None:
    """A selection to an encoder. Settings: those of the section `train`, for example method.type=swav epochs=20.

    With evaluate_every=5 the encoder is measured every five epochs, and OUT/best is the best of them.
    """
    from launch.config.load import check, parse_overrides
    from pipeline.stages.train import Train
    from trainers.engine.config import TrainConfig
    from trainers.evaluation.config import EvaluateConfig

    config = check(TrainConfig, parse_overrides(settings or []), of="train")
    _run_stage(Train(config, seed, EvaluateConfig()), out, {"samples": samples, "selection": selection, "previous": previous})


@app.command()
def evaluate(
    samples: Samples,
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="What `windrow train` or `embed` wrote, or `best` in it.")],
    out: Out,
    settings: Settings = None,
    selection: Annotated[Path | None, typer.Option(help="Measure how even the classes of this selection are.")] = None,
    seed: Seed = 0,
) -> None:
    """Score frozen features: kNN, linear probe, RankMe. Settings: those of the section `evaluate`."""
    import json

    from launch.config.load import check, parse_overrides
    from pipeline.stages.evaluate import EVALUATION, Evaluate
    from trainers.evaluation.config import EvaluateConfig

    config = check(EvaluateConfig, parse_overrides(settings or []), of="evaluate")
    _run_stage(Evaluate(config, seed), out, {"samples": samples, "encoder": encoder, "selection": selection})
    scores = json.loads((out / EVALUATION).read_text())
    typer.echo("\n".join(f"{name}: {value:.4g}" for name, value in scores.items() if isinstance(value, (int, float))))


def _run_stage(stage: "Stage", out: Path, inputs: dict[str, Path | None]) -> None:
    from pipeline.runtime.console import Console
    from pipeline.runtime.ray_executor import Runtime
    from pipeline.stages.stage import run_stage
    from pipeline.storage.lease import locked

    out = out.expanduser().absolute()
    # Links are followed once: that to the best encoder may lead elsewhere before the stage is finished.
    absolute = {role: path.expanduser().resolve() for role, path in inputs.items() if path}
    with locked(out), Runtime(Console()) as runtime:
        run_stage(stage, out, absolute, runtime)


def _config_of(run_dir: Path) -> Path:
    from curation.base.errors import DataError

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise DataError(f"{run_dir} is no run: it has no config.yaml. Give the directory that `windrow run` wrote.")
    return path


def main() -> None:
    """Entry point: a user's mistake ends in a sentence and code 2, a bug in a traceback and code 1.

    Work that a signal stopped and that was saved ends with code 75, which sysexits.h calls a temporary failure: try again.
    """
    from curation.base.errors import StoppedError, UserError

    try:
        app()
    except UserError as error:
        print(f"windrow: {error}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as stopped:
        print(f"windrow: {stopped} The same command continues.", file=sys.stderr)
        sys.exit(75)
