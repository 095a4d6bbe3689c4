"""Rules that decide which rows of a group of near-duplicates are dropped.

`priority` (N,) says which of two rows is preferred: the one with the smaller number, and of equals the smaller row index. It
is a distance to the centroid, a resolution, or any number per row that a user has.
"""

from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rule = Literal["component", "greedy", "star"]


def drop(
    first: np.ndarray, second: np.ndarray, priority: np.ndarray, rule: Rule, *, same: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Dropped rows, ascending (M,), and the row each is dropped for (M,), given the edges `first` (E,), `second` (E,).

    - `component`: of all rows that edges connect, one is kept. Chains may join rows that are far apart.
    - `greedy`: a row is dropped if it has an edge to any preferred row, kept or dropped (Abbas et al., "SemDeDup", 2023).
    - `star`: a row is dropped only for a kept row that it has an edge to; nothing is dropped through a chain.

    Edges marked by `same` (E,) join equal rows, which share all edges: a row near one of them is near all of them.
    """
    rows, first, second = _positions(first, second)
    order = np.lexsort((rows, priority[rows]))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    original = _groups(rank[first], rank[second], same, len(rows))
    a, b = original[rank[first]], original[rank[second]]
    before, after = np.minimum(a, b), np.maximum(a, b)
    before, after = before[before != after], after[before != after]
    match rule:
        case "component":
            kept_for = _smallest_connected(before, after, len(rows))
        case "greedy":
            kept_for = np.arange(len(rows))
            np.minimum.at(kept_for, after, before)
        case "star":
            kept_for = _star(before, after, len(rows))
    kept_for = kept_for[original]
    is_dropped = np.flatnonzero(kept_for != np.arange(len(rows)))
    dropped, dropped_for = rows[order[is_dropped]], rows[order[kept_for[is_dropped]]]
    ascending = np.argsort(dropped)
    return dropped[ascending], dropped_for[ascending]


def leaks(
    first: np.ndarray, second: np.ndarray, first_held_out: int, *, same: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows below `first_held_out` with an edge to a held-out row, ascending (M,), and the smallest such held-out row (M,).

    Rows from `first_held_out` on are held out. Edges are those of `drop`; `same` marks those between equal rows.
    """
    rows, first, second = _positions(first, second)
    original = _groups(first, second, same, len(rows))
    none = np.int64(np.iinfo(np.int64).max)
    held_out = np.full(len(rows), none)  # the smallest held-out row of each group of equal rows
    np.minimum.at(held_out, original, np.where(rows >= first_held_out, rows, none))
    near = held_out.copy()
    a, b = original[first], original[second]
    np.minimum.at(near, a, held_out[b])
    np.minimum.at(near, b, held_out[a])
    leaked = (near[original] < none) & (rows < first_held_out)
    return rows[leaked], near[original][leaked]


def original_of(first: np.ndarray, second: np.ndarray, same: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have edges, ascending (R,), and for each the position (R,) among them of the first row equal to it."""
    rows, first, second = _positions(first, second)
    return rows, _groups(first, second, same, len(rows))


def _positions(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that have edges, ascending (R,), and the edges (E,), (E,) as positions among them."""
    rows, position = np.unique(np.concatenate([first, second]), return_inverse=True)
    return rows, position[: len(first)], position[len(first) :]


def _groups(first: np.ndarray, second: np.ndarray, same: np.ndarray | None, num: int) -> np.ndarray:
    """(num,): for each row the smallest one that equals it."""
    return np.arange(num) if same is None or not same.any() else _smallest_connected(first[same], second[same], num)


def _smallest_connected(first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    """(num,): for each row the smallest one that edges connect it with; the row itself if there is none."""
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(num, num))
    count, label = connected_components(graph, directed=False)
    smallest = np.full(count, num)
    np.minimum.at(smallest, label, np.arange(num))
    return smallest[label]


def _star(before: np.ndarray, after: np.ndarray, num: int) -> np.ndarray:
    """(num,): for each row, numbered by rank, the kept row it is dropped for, or itself if it is kept.

    The kept rows are the first maximal independent set: all rows without an edge to an undecided preferred row are kept, rows
    with an edge to one of them are dropped, and so on with the remaining rows.
    """
    kept_for = np.arange(num)
    undecided = np.ones(num, dtype=bool)
    while len(before):
        kept = undecided.copy()
        kept[after] = False
        from_kept = kept[before]
        np.minimum.at(kept_for, after[from_kept], before[from_kept])
        undecided[before[from_kept]] = False
        undecided[after[from_kept]] = False
        open_edges = undecided[before] & undecided[after]
        undecided &= ~kept
        before, after = before[open_edges], after[open_edges]
    return kept_for
