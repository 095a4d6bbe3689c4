import numpy as np
import pytest

from curation.embeddings.source import ArraySource
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import build_hierarchy
from curation.levels import Level
from curation.measures.features import silhouette
from curation.measures.levels import silhouettes


@pytest.fixture
def rows() -> np.ndarray:
    draws = np.random.default_rng(0)
    return (draws.integers(0, 4, (200, 1)) + 0.2 * draws.standard_normal((200, 3))).astype(np.float32)


@pytest.fixture
def levels(rows: np.ndarray) -> list[Level]:
    return list(build_hierarchy(ArraySource(rows), ClusterConfig(levels=(30, 4), resampling_steps=0), rng_key=1).levels)


def test_silhouettes_are_of_the_rows_at_every_level(rows: np.ndarray, levels: list[Level]) -> None:
    fine = levels[0].assignment
    expected = [silhouette(rows, labels) for labels in (fine, levels[1].assignment[fine])]
    assert silhouettes(ArraySource(rows), levels, np.arange(200)) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


def test_a_sample_too_small_for_so_many_clusters_says_nothing(rows: np.ndarray, levels: list[Level]) -> None:
    sample = np.sort(np.random.default_rng(1).permutation(200)[:59])
    scores = silhouettes(ArraySource(rows), levels, sample)
    assert scores[0] is None
    assert scores[1] == pytest.approx(silhouette(rows, levels[1].assignment[levels[0].assignment]), abs=0.1)
