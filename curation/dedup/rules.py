"""Which rows of a group of near-duplicates stay.

`priority` (N,) says which of two rows to keep: the one with the smaller number, and of equals the smaller row index. It
comes from a distance to the centroid, a resolution, or any column a user has.
"""

from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rule = Literal["component", "greedy", "star"]


def drop(
    first: np.ndarray, second: np.ndarray, priority: np.ndarray, rule: Rule, *, same: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Dropped rows, ascending (M,), and the row each is dropped for (M,), given edges (E,) and (E,).

    - `component`: of everything that edges connect, one row stays. Chains may join rows that are far apart.
    - `greedy`: a row goes if it has an edge to any row before it (Abbas et al., "SemDeDup", 2023), dropped or not.
    - `star`: a row goes only for a row that stays and that it has an edge to; nothing is dropped through a chain.

    Edges that `same` (E,) marks join equal rows, which share all edges: what is near one is near all.
    """
    rows, first, second = _places(first, second)
    order = np.lexsort((rows, priority[rows]))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    original = _groups(rank[first], rank[second], same, len(rows))
    a, b = original[rank[first]], original[rank[second]]
    before, after = np.minimum(a, b), np.maximum(a, b)
    before, after = before[before != after], after[before != after]
    match rule:
        case "component":
            stays = _smallest_connected(before, after, len(rows))
        case "greedy":
            stays = np.arange(len(rows))
            np.minimum.at(stays, after, before)
        case "star":
            stays = _star(before, after, len(rows))
    stays = stays[original]
    dropped = np.flatnonzero(stays != np.arange(len(rows)))
    gone, reason = rows[order[dropped]], rows[order[stays[dropped]]]
    ascending = np.argsort(gone)
    return gone[ascending], reason[ascending]


def leaks(
    first: np.ndarray, second: np.ndarray, first_held_out: int, *, same: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows below `first_held_out` with an edge to one from there on, ascending (M,), and the smallest such row (M,).

    Edges are those of `drop`; `same` marks those between equal rows.
    """
    rows, first, second = _places(first, second)
    original = _groups(first, second, same, len(rows))
    none = np.int64(np.iinfo(np.int64).max)
    held = np.full(len(rows), none)  # by group: its smallest held-out row
    np.minimum.at(held, original, np.where(rows >= first_held_out, rows, none))
    near = held.copy()
    a, b = original[first], original[second]
    np.minimum.at(near, a, held[b])
    np.minimum.at(near, b, held[a])
    leaked = (near[original] < none) & (rows < first_held_out)
    return rows[leaked], near[original][leaked]


def original_of(first: np.ndarray, second: np.ndarray, same: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have edges, ascending (R,), and for each the place (R,) among them of the first that equals it."""
    rows, first, second = _places(first, second)
    return rows, _groups(first, second, same, len(rows))


def _places(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that have edges, ascending, and the edges as places among them."""
    rows, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    return rows, place[: len(first)], place[len(first) :]


def _groups(first: np.ndarray, second: np.ndarray, same: np.ndarray | None, num: int) -> np.ndarray:
    """(num,) for each row the smallest that equals it."""
    return np.arange(num) if same is None or not same.any() else _smallest_connected(first[same], second[same], num)


def _smallest_connected(first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    """(num,) for each row the smallest that edges connect it with, itself if there is none."""
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(num, num))
    count, label = connected_components(graph, directed=False)
    smallest = np.full(count, num)
    np.minimum.at(smallest, label, np.arange(num))
    return smallest[label]


def _star(before: np.ndarray, after: np.ndarray, num: int) -> np.ndarray:
    """For each of `num` rows by rank the kept row it is dropped for, or itself: the first maximal independent set.

    Every row that has no undecided row before it stays, its neighbours go, and so on with what is left.
    """
    stays = np.arange(num)
    undecided = np.ones(num, dtype=bool)
    while len(before):
        keeps = undecided.copy()
        keeps[after] = False
        by_kept = keeps[before]
        np.minimum.at(stays, after[by_kept], before[by_kept])
        undecided[before[by_kept]] = False
        undecided[after[by_kept]] = False
        left = undecided[before] & undecided[after]
        undecided &= ~keeps
        before, after = before[left], after[left]
    return stays
