"""Settings of near-duplicate removal."""

from typing import Literal

from pydantic import Field

from curation.base.config import Config


class DedupConfig(Config):
    """Near-duplicates: by perceptual hashes of the images, and by the cosine similarity of embeddings."""

    similarity: float = Field(default=0.95, gt=0, lt=1)
    """Two rows at least so similar say the same."""
    hash_bits: int | None = Field(default=4, ge=0, le=16)
    """Two images whose perceptual hashes differ in at most so many of 64 bits say the same; null: not looked at."""
    rule: Literal["star", "greedy", "component"] = "star"
    """Which rows go: those near one that stays (star), near any before them (SemDeDup's greedy), or all but one of
    everything connected (component)."""
    keep: Literal["closest", "farthest", "largest", "scores"] = "closest"
    """Prefer the rows closest to their centroid, the typical ones, or the farthest; or the images of most pixels, or the rows
    with the highest scores."""
    protect: bool = True
    """Leave out whatever says the same as a held-out row, too, so that nothing that is measured on is trained on."""
    max_visits: int = Field(default=64, ge=0)
    """Clusters beside its own that a row is compared with at the most; what that costs is reported as recall."""

    @property
    def radius(self) -> float:
        """The Euclidean distance of unit vectors with that similarity."""
        return float((2 - 2 * self.similarity) ** 0.5)
