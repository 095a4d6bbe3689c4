"""Commands for one stage each: from directories to a directory."""

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.cli.common import Clusters, Embeddings, Inline, Out, Samples, Scores, Seed, Settings, make


def shard(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of images, a tar, or a folder of tars.")],
    out: Out,
    settings: Settings = None,
    inline: Inline = False,
) -> None:
    """Images to WebDataset shards and the index of their samples. Settings: those of the section `shard`."""
    from launch.config.load import load_section
    from pipeline.sources.config import ImagesConfig
    from pipeline.stages.config import ShardConfig
    from pipeline.stages.shard import Shard

    config = load_section(ShardConfig, settings or [], name="shard")
    make(Shard(config, ImagesConfig(path=source.expanduser().absolute())), out, {}, inline=inline)


def embed(
    samples: Samples,
    out: Out,
    settings: Settings = None,
    encoder: Annotated[Path | None, typer.Option(help="What `windrow train` wrote, or `best` in it; else encoder.*.")] = None,
    seed: Seed = 0,
    inline: Inline = False,
) -> None:
    """Shards to embeddings. Settings: those of the section `embed`, for example encoder.type=timm encoder.model=resnet18.

    encoder.weights=FILE.safetensors starts from weights of your own, encoder.pretrained=true from timm's.
    """
    from launch.config.load import load_section
    from pipeline.stages.config import EmbedConfig
    from pipeline.stages.embed import Embed

    config = load_section(EmbedConfig, settings or [], name="embed")
    make(Embed(config, seed, has_encoder=encoder is not None), out, {"samples": samples, "encoder": encoder}, inline=inline)


def cluster(
    embeddings: Embeddings,
    out: Out,
    settings: Settings = None,
    seed: Seed = 0,
    inline: Inline = False,
) -> None:
    """Embeddings to a hierarchy of clusters. Settings: those of the section `cluster`, for example levels=[1000,100]."""
    from curation.kmeans.config import ClusterConfig
    from launch.config.load import load_section
    from pipeline.stages.cluster import Cluster

    config = load_section(ClusterConfig, settings or [], name="cluster")
    make(Cluster(config, seed), out, {"embeddings": embeddings}, inline=inline)


def dedup(
    embeddings: Embeddings,
    clusters: Clusters,
    out: Out,
    settings: Settings = None,
    samples: Annotated[Path | None, typer.Option(help="What `windrow shard` wrote: perceptual hashes are used too.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Embeddings of what is measured on: nothing like it stays.")] = None,
    edges: Annotated[Path | None, typer.Option(help="An earlier result, to try a stricter setting on its pairs.")] = None,
    scores: Scores = None,
    inline: Inline = False,
) -> None:
    """Find near-duplicates among clustered embeddings. Settings: those of the section `dedup`, for example similarity=0.9."""
    from curation.dedup.config import DedupConfig
    from launch.config.load import load_section
    from pipeline.stages.dedup import Dedup

    config = load_section(DedupConfig, settings or [], name="dedup")
    given = {"embeddings": embeddings, "clusters": clusters, "samples": samples, "held_out": held_out}
    make(Dedup(config), out, given | {"edges": edges, "scores": scores}, inline=inline)


def label(clusters: Clusters, out: Out, settings: Settings = None, inline: Inline = False) -> None:
    """Clusters to pseudo-labels of every row. Settings: those of the section `label`."""
    from curation.labelers.config import ClustersLabelerConfig
    from launch.config.load import load_section
    from pipeline.stages.label import Label

    config = load_section(ClustersLabelerConfig, settings or [], name="label")
    make(Label(config), out, {"clusters": clusters}, inline=inline)


def select(
    clusters: Clusters,
    out: Out,
    settings: Settings = None,
    samples: Annotated[Path | None, typer.Option(help="What `windrow shard` wrote: a training list is written too.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Pseudo-labels of the training list; else the clusters.")] = None,
    duplicates: Annotated[Path | None, typer.Option(help="What `windrow dedup` wrote: those rows are left out.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="What was clustered, for strategies that compare rows.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Embeddings of what to look for, for strategy=retrieval.")] = None,
    scores: Scores = None,
    seed: Seed = 0,
    inline: Inline = False,
) -> None:
    """Clusters to a selection. Settings: those of the section `select`, for example strategy=balanced fraction=0.3."""
    from curation.selectors.config import SelectConfig
    from launch.config.load import load_section
    from pipeline.stages.select import Select

    config: Any = load_section(SelectConfig, settings or [], name="select", base={"strategy": "balanced"})  # type: ignore[arg-type]
    given = {
        "clusters": clusters,
        "samples": samples,
        "labels": labels,
        "duplicates": duplicates,
        "embeddings": embeddings,
        "queries": queries,
        "scores": scores,
    }
    make(Select(config, seed), out, given, inline=inline)


def train(
    samples: Samples,
    selection: Annotated[Path, typer.Argument(metavar="SELECTION", help="What `windrow select` wrote.")],
    out: Out,
    settings: Settings = None,
    previous: Annotated[Path | None, typer.Option(help="A finished training to start from.")] = None,
    seed: Seed = 0,
    inline: Inline = False,
) -> None:
    """A selection to an encoder. Settings: those of the section `train`, for example method.type=swav epochs=20.

    With evaluate_every=5 the encoder is measured every five epochs, and OUT/best is the best of them.
    """
    from launch.config.load import load_section
    from pipeline.stages.train import Train
    from trainers.engine.config import TrainConfig
    from trainers.evaluation.config import EvaluateConfig

    config = load_section(TrainConfig, settings or [], name="train")
    make(
        Train(config, seed, EvaluateConfig()),
        out,
        {"samples": samples, "selection": selection, "previous": previous},
        inline=inline,
    )


def evaluate(
    samples: Samples,
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="What `windrow train` or `embed` wrote, or `best` in it.")],
    out: Out,
    settings: Settings = None,
    selection: Annotated[Path | None, typer.Option(help="Measure how even the classes of this selection are.")] = None,
    labels: Annotated[Path | None, typer.Option(help="With it, measure how well these pseudo-labels agree with them.")] = None,
    seed: Seed = 0,
    inline: Inline = False,
) -> None:
    """Score frozen features: kNN, linear probe, RankMe. Settings: those of the section `evaluate`."""
    import json

    from launch.config.load import load_section
    from pipeline.artifacts.evaluation import EVALUATION
    from pipeline.stages.evaluate import Evaluate
    from trainers.evaluation.config import EvaluateConfig

    config = load_section(EvaluateConfig, settings or [], name="evaluate")
    given = {"samples": samples, "encoder": encoder, "selection": selection, "labels": labels}
    make(Evaluate(config, seed), out, given, inline=inline)
    scores = json.loads((out / EVALUATION).read_text())
    typer.echo("\n".join(f"{name}: {value:.4g}" for name, value in scores.items() if isinstance(value, (int, float))))
