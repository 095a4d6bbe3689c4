"""Settings of labeling: a class for each labeler, and their union."""

from typing import Literal

from curation.base.config import Config


class ClustersLabelerConfig(Config):
    """The clusters of every level as classes."""

    labeler: Literal["clusters"] = "clusters"


LabelConfig = ClustersLabelerConfig
