"""Settings of the evaluation of frozen features."""

from typing import Annotated

from pydantic import Field

from curation.base.config import Config


class EvaluateConfig(Config):
    """Evaluation of frozen features: kNN and probes. Labels, where the source has class folders, are read only here."""

    operational = frozenset({"batch_size"})

    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 20, 100, 200), min_length=1)
    """Values of k for the weighted kNN classifier, each capped at the number of labelled samples that vote; the best score is
    also reported by itself."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the votes: a neighbour votes with exp(cosine similarity / temperature)."""
    max_samples: int = Field(default=20_000, ge=10)
    """Maximum number of labelled samples used from the pool, and the same number from the held-out split."""
    batch_size: int = Field(default=256, ge=1)
    """Images encoded at once."""
