import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.errors import ConfigError
from curation.embeddings import source
from curation.embeddings.source import ArraySource
from curation.selectors import typicality
from curation.selectors.config import TypicalityConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool
from curation.selectors.typicality import neighbour_distance
from tests.curation.selectors.helpers import check_promises, example_pool, hierarchy, one_cluster, promises


@settings(max_examples=30)
@promises
def test_promises(kind: str, num: int, seed: int, budget: int) -> None:
    check_promises(TypicalityConfig(budget=budget), kind, num, seed)


def literal_distance(points: np.ndarray, num: int) -> list[float]:
    """The inverse of the typicality of Hacohen et al., for the `num` nearest other rows."""
    result = []
    for row, point in enumerate(points):
        distances = sorted(np.linalg.norm(point - other) for index, other in enumerate(points) if index != row)
        result.append(float(np.mean(distances[:num])))
    return result


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 6), st.booleans(), st.data())
def test_the_distance_is_that_of_the_paper(num: int, dim: int, copies: bool, data: st.DataObject) -> None:
    neighbours, seed = data.draw(st.integers(1, num - 1)), data.draw(st.integers(0, 1000))
    draws = np.random.default_rng(seed)
    drawn = draws.integers(0, 2, (num, dim)) if copies else draws.normal(0, 1, (num, dim))
    points = drawn.astype(np.float16).astype(np.float64)  # as precise as embeddings
    measured = neighbour_distance(torch.from_numpy(points), neighbours)
    # Distances between equal rows are zero, not the root of what cancellation leaves.
    assert measured.numpy() == pytest.approx(np.array(literal_distance(points, neighbours)), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("neighbours", [3, 20])
def test_every_cluster_gives_its_most_typical_rows_evenly(neighbours: int) -> None:
    rows, tree = example_pool("blobs", 240)
    available = np.arange(240) % 4 > 0
    pool = Pool(hierarchy=tree, embeddings=ArraySource(rows), available=available)
    selection = select(TypicalityConfig(budget=70, neighbours=neighbours), pool, rng_key=1)
    level = tree.levels[0]
    amounts, sizes = np.zeros(level.num_clusters, int), np.zeros(level.num_clusters, int)
    for cluster in range(level.num_clusters):
        members = np.flatnonzero((level.assignment == cluster) & available)
        taken = np.isin(members, selection.rows)
        sizes[cluster], amounts[cluster] = len(members), taken.sum()
        if taken.any() and not taken.all():
            distance = np.array(literal_distance(rows[members].astype(np.float64), min(neighbours, len(members) - 1)))
            assert distance[taken].max() < distance[~taken].min()
    most = amounts.max()
    assert (amounts[amounts < most - 1] == sizes[amounts < most - 1]).all()


def test_of_equally_typical_rows_the_first_are_taken() -> None:
    rows = np.zeros((9, 2), np.float32)
    rows[[2, 5]] = 100
    pool = Pool(hierarchy=one_cluster(rows), embeddings=ArraySource(rows))
    assert select(TypicalityConfig(budget=4, neighbours=2), pool, rng_key=1).rows.tolist() == [0, 1, 3, 4]


def test_small_tiles_and_reads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tree = example_pool("blobs", 240)
    pool = Pool(hierarchy=tree, embeddings=ArraySource(rows))
    config = TypicalityConfig(budget=70, neighbours=5)
    whole = select(config, pool, rng_key=1).rows
    monkeypatch.setattr(typicality, "_TILE", 3)
    monkeypatch.setattr(source, "_HELD", 50)
    assert np.array_equal(select(config, pool, rng_key=1).rows, whole)


def test_embeddings_are_needed() -> None:
    with pytest.raises(ConfigError, match="compares rows"):
        select(TypicalityConfig(budget=5), Pool(hierarchy=hierarchy(50)), rng_key=1)
