"""What a user may set about a run."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from curation.base.config import Config
from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from curation.selectors.config import SelectConfig
from trainers.engine.config import TrainConfig
from trainers.evaluation.config import EvaluateConfig
from trainers.models.config import EncoderConfig, PixelsConfig


class ImagesConfig(Config):
    """Images of one's own: a folder tree, a tar, or a folder of tars (plain, gzip or zstd)."""

    type: Literal["images"] = "images"
    path: Path
    """Top-level folders named train and test (or val) become splits; the folder an image lies in becomes its label,
    which only evaluation reads."""
    long_tail: float = Field(default=1, ge=1)
    """For experiments: thin the classes of the training split out by Zipf's law until the first has so many times more
    images than the last. 1 keeps everything."""


class DigitsConfig(Config):
    """Scikit-learn's 1,797 handwritten digits, made long-tailed, with broken and duplicate files among them."""

    type: Literal["digits"] = "digits"
    long_tail: float = Field(default=15, ge=1)
    """How many times more images the most frequent digit has than the rarest."""


SourceConfig = Annotated[ImagesConfig | DigitsConfig, Field(discriminator="type")]


class ShardConfig(Config):
    """WebDataset tars, and the index of the samples in them."""

    operational = frozenset({"max_rejected_fraction"})

    samples_per_shard: int = Field(default=5000, ge=1)
    min_side: int = Field(default=16, ge=1)
    """Images with a shorter side are set aside, in pixels."""
    max_rejected_fraction: float = Field(default=0.2, ge=0, le=1)
    """Stop if more than this share of the files is unreadable or too small; exact duplicates do not count."""


class EmbedConfig(Config):
    """Features of the pool. From the second round on the last round's checkpoint is the encoder."""

    operational = frozenset({"batch_size"})

    encoder: EncoderConfig = PixelsConfig()
    """The encoder of the first round."""
    batch_size: int = Field(default=256, ge=1)


class RunConfig(Config):
    """A run: the rounds of one source, in one directory."""

    run_dir: Path
    """Everything the run writes. The same command on the same directory continues it."""
    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=2, ge=1)
    source: SourceConfig
    shard: ShardConfig = ShardConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    dedup: DedupConfig | None = None
    """Leave near-duplicates out before selecting; without this section nothing is left out."""
    select: SelectConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
