"""Settings of the stages that have no numerics of their own."""

from pydantic import Field

from curation.base.config import Config
from trainers.models.config import EncoderConfig, PixelsConfig


class ShardConfig(Config):
    """WebDataset tars, and the index of the samples in them."""

    operational = frozenset({"max_rejected_fraction"})

    samples_per_shard: int = Field(default=5000, ge=1)
    min_side: int = Field(default=16, ge=1)
    """Images with a shorter side are set aside, in pixels."""
    max_rejected_fraction: float = Field(default=0.2, ge=0, le=1)
    """Stop if more than this share of the files is unreadable or too small; exact duplicates do not count."""


class EmbedConfig(Config):
    """Features of the pool. From the second round on the last round's encoder is used."""

    operational = frozenset({"batch_size"})

    encoder: EncoderConfig = PixelsConfig()
    """The encoder of the first round."""
    batch_size: int = Field(default=256, ge=1)
