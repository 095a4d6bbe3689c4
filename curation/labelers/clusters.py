"""The clusters of every level as classes (DeepCluster, Caron et al. 2018)."""

from collections.abc import Iterator

import numpy as np

from curation.labelers.config import ClustersLabelerConfig
from curation.labelers.labels import Block, Labels
from curation.levels import ClusterHierarchy

_BLOCK_ROWS = 1 << 18


def label(_config: ClustersLabelerConfig, hierarchy: ClusterHierarchy) -> Labels:
    """Columns `level_1`, the finest, to `level_L`."""
    names = [f"level_{number}" for number in range(1, len(hierarchy.levels) + 1)]

    def blocks() -> Iterator[Block]:
        for first in range(0, len(hierarchy.levels[0].assignment), _BLOCK_ROWS):
            labels = np.asarray(hierarchy.levels[0].assignment[first : first + _BLOCK_ROWS])
            columns = {names[0]: labels}
            for name, level in zip(names[1:], hierarchy.levels[1:], strict=True):
                labels = level.assignment[labels]
                columns[name] = labels
            yield first, columns

    return Labels(
        num_classes={name: level.num_clusters for name, level in zip(names, hierarchy.levels, strict=True)}, blocks=blocks
    )
