"""How well the clusters of the levels of a hierarchy are apart."""

from collections.abc import Sequence

import numpy as np

from curation.embeddings.source import EmbeddingSource
from curation.levels import Level
from curation.measures.features import silhouette


def silhouettes(source: EmbeddingSource, levels: Sequence[Level], rows: np.ndarray) -> list[float | None]:
    """The silhouette of each level on the same ascending `rows` (M,); None if there are not even two of them to a cluster.

    A row that is alone in its cluster counts 0: with so many clusters most of them would be.
    """
    embeddings = source.take(rows)
    labels = rows  # below level 1 every row has its own
    scores: list[float | None] = []
    for level in levels:
        labels = level.assignment[labels]
        scores.append(silhouette(embeddings, labels) if 2 * level.num_clusters <= len(rows) else None)
    return scores
