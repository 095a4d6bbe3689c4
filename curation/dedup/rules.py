"""Which rows of a group of near-duplicates stay.

`priority` (N,) says which of two rows to keep: the one with the smaller number, and of equals the smaller row index. It
comes from a distance to the centroid, a resolution, or any column a user has.
"""

from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rule = Literal["component", "greedy", "star"]


def drop(first: np.ndarray, second: np.ndarray, priority: np.ndarray, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Dropped rows, ascending (M,), and the row each is dropped for (M,), given edges (E,) and (E,).

    - `component`: of everything that edges connect, one row stays. Chains may join rows that are far apart.
    - `greedy`: a row goes if it has an edge to any row before it (Abbas et al., "SemDeDup", 2023), dropped or not.
    - `star`: a row goes only for a row that stays and that it has an edge to; nothing is dropped through a chain.
    """
    rows, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    order = np.lexsort((rows, priority[rows]))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    a, b = rank[place[: len(first)]], rank[place[len(first) :]]
    before, after = np.minimum(a, b), np.maximum(a, b)
    before, after = before[before != after], after[before != after]
    match rule:
        case "component":
            graph = coo_array((np.ones(len(before), dtype=bool), (before, after)), shape=(len(rows), len(rows)))
            count, label = connected_components(graph, directed=False)
            kept = np.full(count, len(rows))
            np.minimum.at(kept, label, np.arange(len(rows)))
            stays = kept[label]
        case "greedy":
            stays = np.arange(len(rows))
            np.minimum.at(stays, after, before)
        case "star":
            stays = _star(before, after, len(rows))
    dropped = np.flatnonzero(stays != np.arange(len(rows)))
    gone, reason = rows[order[dropped]], rows[order[stays[dropped]]]
    ascending = np.argsort(gone)
    return gone[ascending], reason[ascending]


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
