"""Which rows of each cluster, given how many: for a billion rows."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from curation.base import rng
from curation.kmeans.levels import Level
from curation.sampling.allocation import place_in_group

_BLOCK = 2**22
"""Rows looked at in one piece."""
_CANDIDATES = 2**26
"""Rows held at once; each takes about forty bytes."""
_ANY = np.uint32(2**32 - 1)


def sizes_of(level: Level, available: np.ndarray | None) -> np.ndarray:
    """(K,) int64: the rows of a finest level that are `available` (N,), None for all, in each cluster."""
    if available is None:
        return level.sizes
    sizes = np.zeros(level.num_clusters, dtype=np.int64)
    for start in range(0, len(available), _BLOCK):
        labels = level.assignment[start : start + _BLOCK][available[start : start + _BLOCK]]
        sizes += np.bincount(labels, minlength=level.num_clusters)
    return sizes


def grouped(assignment: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by the cluster they are in: ids (M,) and offsets (G + 1,)."""
    counts = np.bincount(assignment, minlength=num_groups)
    return np.argsort(assignment, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


@dataclass(frozen=True)
class Tickets:
    """In which order the rows of a cluster are taken: the smallest ticket first."""

    of: Callable[[int, np.ndarray], np.ndarray]
    """For the rows from the first on, of the clusters (B,): (B,) uint32."""
    even: bool = False
    """Whether tickets are spread evenly over their range, so that small ones can be guessed."""


def by_distance(squared: np.ndarray, *, farthest: bool = False) -> Tickets:
    """By distances (N,) float32, none negative; nearest first, or `farthest`."""
    # The bits of a float that is not negative ascend with it.
    bits = np.asarray(squared).view(np.uint32)
    return Tickets(lambda first, labels: bits[first : first + len(labels)] ^ np.uint32(_ANY if farthest else 0))


def by_chance(rng_key: int, weights: np.ndarray | None = None) -> Tickets:
    """At random, or so that the chances to be taken next are in proportion to `weights` (N,)."""
    if weights is None:
        return Tickets(lambda first, labels: rng.tickets(rng_key, first, len(labels)), even=True)

    def weighted(first: int, labels: np.ndarray) -> np.ndarray:
        """Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006."""
        chance = (rng.tickets(rng_key, first, len(labels)) + 0.5) * 2.0**-32
        with np.errstate(divide="ignore"):
            return (-np.log(chance) / weights[first : first + len(labels)]).astype(np.float32).view(np.uint32)

    return Tickets(weighted)


def draw(
    assignment: np.ndarray,
    sizes: np.ndarray,
    amounts: np.ndarray,
    tickets: Tickets,
    available: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`amounts[k]` of the `sizes[k]` available rows of each cluster k: ascending indices (S,) and how often each counts (S,).

    Of most clusters only rows with small tickets are looked at: where tickets are even, so many that the wanted ones are
    very likely among them. A cluster where they are not is looked at again as a whole.
    """
    rounds, rest = np.divmod(amounts, np.maximum(sizes, 1))
    full = [np.empty(0, np.int64)]
    always = rounds > 0
    if always.any():

        def whole(first: int, labels: np.ndarray) -> tuple[np.ndarray, ...]:
            return (first + _where(first, always[labels], available),)

        full += [rows for (rows,) in _blocks(assignment, whole)]
    limits = np.full(len(sizes), _ANY)
    if tickets.even:
        share = (rest + 3 * np.sqrt(rest) + 2) / np.maximum(sizes, 1)
        limits = (np.minimum(share, 1) * float(_ANY)).astype(np.uint32)
    drawn, short = _smallest(assignment, sizes, rest, limits, tickets, available)
    again, _ = _smallest(assignment, sizes, np.where(short, rest, 0), np.full(len(sizes), _ANY), tickets, available)
    every_time = np.concatenate(full)
    rows = np.concatenate([every_time, drawn, again])
    repeats = np.concatenate([rounds[assignment[every_time]], np.ones(len(drawn) + len(again), dtype=np.int64)])
    order = np.argsort(rows)
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    return rows[order][first], np.add.reduceat(repeats[order], first).astype(np.int32) if len(first) else np.empty(0, np.int32)


def _smallest(
    assignment: np.ndarray,
    sizes: np.ndarray,
    wanted: np.ndarray,
    limits: np.ndarray,
    tickets: Tickets,
    available: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `wanted[k]` rows of each cluster with the smallest tickets up to `limits[k]`, and where (K,) there are too few.

    Of a cluster with too few none are returned. Clusters are taken so many at a time that the rows to compare fit in memory.
    """
    expected = np.where(wanted > 0, sizes * ((limits + 1.0) * 2.0**-32), 0)
    batch = (np.cumsum(expected) // _CANDIDATES).astype(np.int64)
    found, short = [np.empty(0, np.int64)], np.zeros(len(sizes), dtype=bool)
    for number in np.unique(batch[wanted > 0]):
        goal = np.where(batch == number, wanted, 0)
        within = np.where(goal > 0, limits, 0).astype(np.uint32)

        def candidates(first: int, labels: np.ndarray, within: np.ndarray = within) -> tuple[np.ndarray, ...]:
            ticket = tickets.of(first, labels)
            kept = _where(first, ticket <= within[labels], available)
            return first + kept, labels[kept].astype(np.uint64) << np.uint64(32) | ticket[kept]

        pieces = list(_blocks(assignment, candidates))
        rows, keys = (np.concatenate(column) for column in zip(*pieces, strict=True))
        del pieces
        order = np.argsort(keys, kind="stable")  # rows ascend, so of equal tickets the first row's wins
        labels = (keys[order] >> np.uint64(32)).astype(np.int64)
        short |= np.bincount(labels, minlength=len(sizes)) < goal
        wins = (place_in_group(labels) < goal[labels]) & ~short[labels]
        found.append(rows[order[wins]])
    return np.concatenate(found), short


def _where(first: int, wanted: np.ndarray, available: np.ndarray | None) -> np.ndarray:
    """Places in a block that begins at row `first` where `wanted` (B,) holds and the row is available."""
    return np.flatnonzero(wanted if available is None else wanted & available[first : first + len(wanted)])


def _blocks(
    assignment: np.ndarray, function: Callable[[int, np.ndarray], tuple[np.ndarray, ...]]
) -> Iterator[tuple[np.ndarray, ...]]:
    """`function(first row, labels (B,))` for every block of rows, several at a time, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(
            lambda first: function(first, np.asarray(assignment[first : first + _BLOCK])),
            range(0, max(len(assignment), 1), _BLOCK),
        )
