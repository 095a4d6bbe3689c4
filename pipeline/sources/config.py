"""Settings of sources: a class for each kind, and their union."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from curation.base.config import Config


class ImagesConfig(Config):
    """Images of one's own: a folder tree, a tar, or a folder of tars (plain, gzip or zstd)."""

    type: Literal["images"] = "images"
    path: Path
    """Top-level folders named train and test (or val) become splits; the folder an image lies in becomes its label,
    which only evaluation reads."""
    long_tail: float = Field(default=1, ge=1)
    """Thin the classes of the training split out by Zipf's law until the first has so many times more
    images than the last: for experiments. 1 keeps everything."""


class DigitsConfig(Config):
    """Scikit-learn's 1,797 handwritten digits, made long-tailed, with broken and duplicate files among them."""

    type: Literal["digits"] = "digits"
    long_tail: float = Field(default=15, ge=1)
    """How many times more images the most frequent digit has than the rarest."""


SourceConfig = Annotated[ImagesConfig | DigitsConfig, Field(discriminator="type")]
