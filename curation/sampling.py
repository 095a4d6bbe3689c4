"""A budget of rows, spread evenly over a hierarchy or over nothing at all."""

import numpy as np

from curation import rng
from curation.hierarchy import ClusterHierarchy
from curation.selection import Selection


def balanced(hierarchy: ClusterHierarchy, budget: int, *, stream: int) -> Selection:
    """Hierarchical balanced sampling: the budget flows from the coarsest level down, as evenly as sizes allow.

    At each cluster the target is poured over its children like water: all get the same amount, small ones fill up and pass
    the rest on (Vo et al. 2024, section 3.3). Inside the finest clusters rows are drawn at random without replacement.
    The result has exactly `budget` rows, or all of them if there are fewer.
    """
    top = hierarchy.levels[-1]
    total = int(top.sizes.sum())
    targets = water_fill(
        top.sizes, np.array([0, top.num_clusters]), np.array([min(budget, total)]), stream=rng.key(stream, "top")
    )
    for depth in range(len(hierarchy.levels) - 1, 0, -1):
        offsets, ids = hierarchy.levels[depth].children()
        below = hierarchy.levels[depth - 1]
        shares = water_fill(below.sizes[ids], offsets, targets, stream=rng.key(stream, "level", depth))
        targets = np.empty_like(shares)
        targets[ids] = shares
    rows = _draw(hierarchy.levels[0].assignment, targets, stream=rng.key(stream, "rows"))
    return Selection(
        rows=rows,
        repeats=np.ones(len(rows), dtype=np.int32),
        reason="balanced",
        counts={"pool": total, "selected": len(rows)},
    )


def random(num_rows: int, budget: int, *, stream: int) -> Selection:
    """`budget` of `num_rows` rows, uniformly without replacement: the control that curation must beat."""
    rows = np.sort(rng.permute(stream, np.arange(min(budget, num_rows)), num_rows))
    return Selection(
        rows=rows,
        repeats=np.ones(len(rows), dtype=np.int32),
        reason="random",
        counts={"pool": num_rows, "selected": len(rows)},
    )


def water_fill(sizes: np.ndarray, offsets: np.ndarray, targets: np.ndarray, *, stream: int) -> np.ndarray:
    """Share each group's target over its members as evenly as their sizes allow; all groups at once.

    `sizes` (M,) are the members' capacities, group g owning members `offsets[g]` to `offsets[g + 1]` (G + 1,), and
    `targets` (G,) what each group must place. Returns the amounts (M,) int64: within a group min(size, c) for the largest
    whole c that does not exceed the target, plus one for a random choice of the members that still have room, so that each
    group places exactly min(target, its total size).
    """
    num_groups = len(targets)
    counts = np.diff(offsets)
    group = np.repeat(np.arange(num_groups), counts)
    order = np.lexsort((sizes, group))
    ascending = sizes[order].astype(np.int64)
    # Filling member i of a sorted group to its brim, and everyone after it as high, takes filled + size * (members left).
    before = np.cumsum(ascending) - ascending
    filled = before - np.repeat(before[offsets[:-1].clip(max=max(len(before) - 1, 0))], counts)
    left = np.repeat(offsets[1:], counts) - np.arange(len(sizes))
    brimful = filled + ascending * left <= targets[group]
    full = np.bincount(group, weights=brimful, minlength=num_groups).astype(np.int64)
    spent = np.bincount(group, weights=ascending * brimful, minlength=num_groups).astype(np.int64)
    open_members = counts - full
    level, remainder = np.divmod(targets - spent, np.maximum(open_members, 1))
    amounts = np.where(brimful, ascending, level[group])
    # The remainder goes to open members in random order, one each.
    lottery = np.lexsort((rng.order(stream, order), brimful, group))
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[lottery] = np.arange(len(sizes)) - np.repeat(offsets[:-1], counts)
    amounts = amounts + (~brimful & (rank < remainder[group]))
    result = np.empty(len(sizes), dtype=np.int64)
    result[order] = amounts
    return result


def _draw(assignment: np.ndarray, amounts: np.ndarray, *, stream: int) -> np.ndarray:
    """`amounts[k]` random rows of each cluster k; ascending row indices."""
    shuffled = np.lexsort((rng.order(stream, np.arange(len(assignment))), assignment))
    sizes = np.bincount(assignment, minlength=len(amounts))
    place = np.arange(len(assignment)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled[place < amounts[assignment[shuffled]]])
