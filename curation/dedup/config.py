"""Settings of near-duplicate removal."""

from typing import Literal

from pydantic import Field

from curation.base.config import Config


class DedupConfig(Config):
    """Removal of near-duplicates, found by perceptual hashes of the images and by the cosine similarity of embeddings."""

    similarity: float = Field(default=0.95, gt=0, lt=1)
    """Minimum cosine similarity of two rows that are near-duplicates."""
    hash_bits: int | None = Field(default=4, ge=0, le=16)
    """Maximum number of bits, of 64, in which the perceptual hashes of two images that are near-duplicates differ. Null: hashes
    are not compared."""
    rule: Literal["star", "greedy", "component"] = "star"
    """Which rows are dropped: near-duplicates of a row that is kept (star), near-duplicates of any preferred row, kept or not
    (greedy, as in SemDeDup), or all but one row of everything that near-duplicates connect (component)."""
    keep: Literal["closest", "farthest", "largest", "scores"] = "closest"
    """Which rows are preferred: those closest to their centroid, the typical ones; those farthest from it; the images with most
    pixels (largest); or the rows with the highest scores."""
    protect: bool = True
    """Also drop near-duplicates of held-out rows, so that nothing that is evaluated on is trained on."""
    max_visits: int = Field(default=64, ge=0)
    """Maximum number of other clusters each row is compared with; the pairs that this misses are reported as recall."""

    @property
    def radius(self) -> float:
        """The Euclidean distance of two unit vectors with cosine similarity `similarity`."""
        return float((2 - 2 * self.similarity) ** 0.5)

    @property
    def needs(self) -> frozenset[str]:
        """Inputs that deduplication cannot do without, of "embeddings", "samples" (sizes of images) and "scores"."""
        return frozenset({"embeddings", *{"largest": ("samples",), "scores": ("scores",)}.get(self.keep, ())})
