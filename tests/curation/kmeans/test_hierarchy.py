from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from curation.base.collectives import Alone, TorchCollectives
from curation.base.journal import Journal
from curation.embeddings.source import ArraySource, Block
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import build_hierarchy, closest_items, hierarchical_kmeans
from curation.kmeans.lloyd import KMeans
from curation.levels import ClusterHierarchy, HierarchyProgress, Level, LevelShare
from curation.measures.balance import total_variation_from_uniform
from curation.selectors.config import BalancedConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool
from tests.helpers import on_ranks


def build(rows: np.ndarray, levels: list[int], **settings: Any) -> ClusterHierarchy:
    return build_hierarchy(ArraySource(rows), ClusterConfig(levels=levels, **settings), rng_key=1)


def rings(num: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Five rings of equal area with very different numbers of points, and the ring of each point."""
    draws = np.random.default_rng(0)
    share = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
    ring = draws.choice(5, num, p=share)
    radius = np.sqrt((ring + draws.random(num)) / 5)
    angle = 2 * np.pi * draws.random(num)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float16), ring


def test_levels_fit_together() -> None:
    rows, _ = rings()
    hierarchy = build(rows, [200, 40, 8], resampling_steps=2)
    assert [level.num_clusters for level in hierarchy.levels] == [200, 40, 8]
    for depth, level in enumerate(hierarchy.levels, start=1):
        assert np.array_equal(level.sizes, np.bincount(hierarchy.labels(depth), minlength=level.num_clusters))
        offsets, ids = level.children()
        assert sorted(ids) == list(range(len(level.assignment)))
        for cluster in range(level.num_clusters):
            members = ids[offsets[cluster] : offsets[cluster + 1]]
            assert (level.assignment[members] == cluster).all()
            assert (np.diff(level.squared_distance[members]) >= 0).all()


def test_resampling_and_levels_flatten_what_k_means_leaves_uneven() -> None:
    rows, ring = rings()
    plain, curated = build(rows, [100], resampling_steps=0), build(rows, [300, 100], resampling_steps=10)
    tv = []
    for hierarchy in (plain, curated):
        chosen = select(BalancedConfig(budget=200), Pool(hierarchy=hierarchy), rng_key=1).rows
        tv.append(total_variation_from_uniform(np.bincount(ring[chosen], minlength=5)))
    assert total_variation_from_uniform(np.bincount(ring)) > 0.35
    assert tv[0] < 0.3
    assert tv[1] < 0.8 * tv[0]


def test_the_closest_rows_of_each_cluster() -> None:
    rows, _ = rings(500)
    result = KMeans(ArraySource(rows), 20, rng_key=1).run()
    kept = closest_items(result, 4, Alone())
    for cluster in range(20):
        members = np.flatnonzero(result.local_assignment == cluster)
        best = members[np.argsort(result.local_squared_distance[members], kind="stable")[:4]]
        assert set(kept) & set(members) == set(best)


def test_a_continued_hierarchy_is_the_same() -> None:
    rows, _ = rings(800)
    whole = build(rows, [100, 20, 5], resampling_steps=1).levels
    config = ClusterConfig(levels=[100, 20, 5], resampling_steps=1)
    events = hierarchical_kmeans(ArraySource(rows), config, rng_key=1, done=whole[:1])
    rest = [event for event in events if isinstance(event, LevelShare)]
    assert len(rest) == 2
    for again, before in zip(rest, whole[1:], strict=True):
        assert np.array_equal(again.centroids, before.centroids)


def test_fewer_distinct_rows_than_clusters_leave_levels_out() -> None:
    rows = np.repeat(np.eye(4, dtype=np.float16), 30, axis=0)
    hierarchy = build(rows, [50, 10, 2])
    assert [level.num_clusters for level in hierarchy.levels] == [4, 2]
    assert hierarchy.levels[-1].sizes.sum() == 120


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.ones((50, 3)), np.eye(3)])
def test_degenerate_data(rows: np.ndarray) -> None:
    hierarchy = build(rows.astype(np.float16), [10, 2])
    assert hierarchy.levels[-1].sizes.sum() == len(rows)
    assert isinstance(hierarchy.levels[0], Level)


def test_levels_must_descend() -> None:
    with pytest.raises(ValidationError, match="descend"):
        build(np.eye(4), [2, 3])


def _same_hierarchy_on_every_worker(rank: int) -> None:
    rows, _ = rings(2000)
    workers = TorchCollectives()
    source = ArraySource(rows, block_rows=256)
    config = ClusterConfig(levels=[120, 30, 4], resampling_steps=2)
    alone = list(hierarchical_kmeans(source, config, rng_key=1))
    shared = list(hierarchical_kmeans(source, config, rng_key=1, collectives=workers))
    assert len(alone) == len(shared)
    for one, other in zip(alone, shared, strict=True):
        if isinstance(one, LevelShare) and isinstance(other, LevelShare):
            assert np.array_equal(one.centroids, other.centroids)
            assert np.array_equal(one.sizes, other.sizes)
            assert np.array_equal(one.local_assignment, np.concatenate(workers.gather(other.local_assignment)))
        else:
            assert one == other


def test_any_number_of_workers_gives_the_same_hierarchy() -> None:
    on_ranks(_same_hierarchy_on_every_worker, 3)


class KilledError(Exception):
    pass


class Dying(ArraySource):
    """A source whose reader dies at the given read."""

    lives = 10**9

    def blocks(self) -> Iterator[Block]:
        for block in super().blocks():
            self.lives -= 1
            if self.lives < 0:
                raise KilledError
            yield block

    def share(self, _worker: int, _num_workers: int) -> "Dying":
        return self


def test_killed_anywhere_a_hierarchy_continues_to_the_same_bits(tmp_path: Path) -> None:
    rows, _ = rings(1500)

    config = ClusterConfig(levels=[100, 20], resampling_steps=4)

    def events(source: ArraySource, done: list[Level], journal: Journal) -> Iterator[HierarchyProgress | LevelShare]:
        return hierarchical_kmeans(source, config, rng_key=1, done=done, journal=journal)

    undisturbed = build_hierarchy(ArraySource(rows), config, rng_key=1).levels
    done: list[Level] = []
    kills = 0
    chance = np.random.default_rng(0)
    while True:
        source = Dying(rows, block_rows=400)
        source.lives = int(chance.integers(9, 20))
        try:
            for event in events(source, done.copy(), Journal(tmp_path, seconds=0)):
                done += [event.whole()] if isinstance(event, LevelShare) else []
            break
        except KilledError:
            kills += 1
            assert kills < 100
    assert kills > 5
    for again, before in zip(done, undisturbed, strict=True):
        for name in ("centroids", "assignment", "squared_distance", "sizes"):
            assert np.array_equal(getattr(again, name), getattr(before, name))
