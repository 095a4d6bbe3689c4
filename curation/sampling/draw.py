"""Draws of given numbers of rows from each cluster, for a billion rows."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from curation.base import rng
from curation.levels import Level
from curation.sampling.allocation import position_in_group

_BLOCK = 2**22
"""Rows processed at once."""
_CANDIDATES = 2**26
"""Candidate rows held at once; each takes about forty bytes."""
_LARGEST = np.uint32(2**32 - 1)
"""The largest ticket."""


def sizes_of(level: Level, available: np.ndarray | None) -> np.ndarray:
    """(K,) int64: the number of rows in each cluster of a finest level that are `available` (N,) bool; None: all."""
    if available is None:
        return level.sizes
    sizes = np.zeros(level.num_clusters, dtype=np.int64)
    for start in range(0, len(available), _BLOCK):
        labels = level.assignment[start : start + _BLOCK][available[start : start + _BLOCK]]
        sizes += np.bincount(labels, minlength=level.num_clusters)
    return sizes


def grouped(assignment: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Items grouped by cluster: ids (M,), and offsets (G + 1,): group g has `ids[offsets[g]]` to `ids[offsets[g + 1]]`."""
    counts = np.bincount(assignment, minlength=num_groups)
    return np.argsort(assignment, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


@dataclass(frozen=True)
class Tickets:
    """An order in which the rows of a cluster are taken: the smallest ticket first."""

    of: Callable[[int, np.ndarray], np.ndarray]
    """Function of a first row and the clusters (B,) of the rows from it on; returns their tickets (B,) uint32."""
    even: bool = False
    """Whether tickets are spread evenly over their range, so that a limit tells how many are below it."""


def by_distance(squared: np.ndarray, *, farthest: bool = False) -> Tickets:
    """Tickets by non-negative distances `squared` (N,) float32: the nearest rows first, or the farthest."""
    # The bits of a float that is not negative ascend with it.
    bits = np.asarray(squared).view(np.uint32)
    return Tickets(lambda first, labels: bits[first : first + len(labels)] ^ np.uint32(_LARGEST if farthest else 0))


def by_chance(rng_key: int, weights: np.ndarray | None = None) -> Tickets:
    """Random tickets; with `weights` (N,) the probability to be taken next is in proportion to the weight.

    `rng_key` is the random key (`rng.key`).
    """
    if weights is None:
        return Tickets(lambda first, labels: rng.tickets(rng_key, first, len(labels)), even=True)

    def weighted(first: int, labels: np.ndarray) -> np.ndarray:
        # Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006.
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
    """`amounts[k]` of the `sizes[k]` available rows of each cluster k: ascending indices (S,) int64 and repeats (S,) int32.

    Where tickets are even, only rows with tickets below a limit are compared at first, which very likely include those to be
    taken. A cluster where they do not is drawn again from all its rows.
    """
    rounds, rest = np.divmod(amounts, np.maximum(sizes, 1))
    full = [np.empty(0, np.int64)]
    is_full = rounds > 0
    if is_full.any():

        def whole(first: int, labels: np.ndarray) -> tuple[np.ndarray, ...]:
            return (first + _where(first, is_full[labels], available),)

        full += [rows for (rows,) in _blocks(assignment, whole)]
    limits = np.full(len(sizes), _LARGEST)
    if tickets.even:
        share = (rest + 3 * np.sqrt(rest) + 2) / np.maximum(sizes, 1)
        limits = (np.minimum(share, 1) * float(_LARGEST)).astype(np.uint32)
    drawn, short = _smallest(assignment, sizes, rest, limits, tickets, available)
    redrawn, _ = _smallest(assignment, sizes, np.where(short, rest, 0), np.full(len(sizes), _LARGEST), tickets, available)
    full_rows = np.concatenate(full)
    rows = np.concatenate([full_rows, drawn, redrawn])
    repeats = np.concatenate([rounds[assignment[full_rows]], np.ones(len(drawn) + len(redrawn), dtype=np.int64)])
    order = np.argsort(rows)
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    return rows[order][first], np.add.reduceat(repeats[order], first).astype(np.int32) if len(first) else np.empty(0, np.int32)


def _smallest(
    assignment: np.ndarray,
    sizes: np.ndarray,
    amounts: np.ndarray,
    limits: np.ndarray,
    tickets: Tickets,
    available: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `amounts[k]` rows of each cluster with the smallest tickets up to `limits[k]`, and the clusters (K,) with too few.

    No rows of clusters with too few are returned. As many clusters are drawn from at once as rows to compare fit in memory.
    """
    expected = np.where(amounts > 0, sizes * ((limits + 1.0) * 2.0**-32), 0)
    batch = (np.cumsum(expected) // _CANDIDATES).astype(np.int64)
    drawn, short = [np.empty(0, np.int64)], np.zeros(len(sizes), dtype=bool)
    for number in np.unique(batch[amounts > 0]):
        batch_amounts = np.where(batch == number, amounts, 0)
        batch_limits = np.where(batch_amounts > 0, limits, 0).astype(np.uint32)

        def candidates(first: int, labels: np.ndarray, limits: np.ndarray = batch_limits) -> tuple[np.ndarray, ...]:
            ticket = tickets.of(first, labels)
            kept = _where(first, ticket <= limits[labels], available)
            return first + kept, labels[kept].astype(np.uint64) << np.uint64(32) | ticket[kept]

        pieces = list(_blocks(assignment, candidates))
        rows, keys = (np.concatenate(column) for column in zip(*pieces, strict=True))
        del pieces
        order = np.argsort(keys, kind="stable")  # rows ascend, so of equal tickets that of the first row comes first
        labels = (keys[order] >> np.uint64(32)).astype(np.int64)
        short |= np.bincount(labels, minlength=len(sizes)) < batch_amounts
        taken = (position_in_group(labels) < batch_amounts[labels]) & ~short[labels]
        drawn.append(rows[order[taken]])
    return np.concatenate(drawn), short


def _where(first: int, condition: np.ndarray, available: np.ndarray | None) -> np.ndarray:
    """Indices into a block that begins at row `first` where `condition` (B,) holds and the row is available."""
    return np.flatnonzero(condition if available is None else condition & available[first : first + len(condition)])


def _blocks(
    assignment: np.ndarray, function: Callable[[int, np.ndarray], tuple[np.ndarray, ...]]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield `function(first row, labels (B,))` for every block of rows in order; several are computed at once."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(
            lambda first: function(first, np.asarray(assignment[first : first + _BLOCK])),
            range(0, max(len(assignment), 1), _BLOCK),
        )
