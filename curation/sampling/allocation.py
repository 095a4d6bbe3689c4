"""Exact budgets over groups: how many rows each group gives."""

import numpy as np

from curation.base import rng


def water_fill(sizes: np.ndarray, offsets: np.ndarray, targets: np.ndarray, *, rng_key: int) -> np.ndarray:
    """Share the target of each group over its members as evenly as their sizes allow, for all groups at once.

    `sizes` (M,) are the capacities of the members; group g has the members `offsets[g]` to `offsets[g + 1]` (G + 1,), and
    `targets` (G,) are the amounts to share. Returns the amounts (M,) int64: within a group min(size, c), for the largest whole
    c that does not exceed the target, plus one for a random choice of the members that still have room, so that the amounts
    of a group add up to exactly min(target, its total size). `rng_key` is the random key (`rng.key`).
    """
    num_groups = len(targets)
    counts = np.diff(offsets)
    group = np.repeat(np.arange(num_groups), counts)
    order = np.lexsort((sizes, group))
    ascending = sizes[order].astype(np.int64)
    # Filling member i of a sorted group, and all members after it to the same level, takes smaller + size * num_from_here.
    before = np.cumsum(ascending) - ascending
    smaller = before - np.repeat(before[offsets[:-1].clip(max=max(len(before) - 1, 0))], counts)
    num_from_here = np.repeat(offsets[1:], counts) - np.arange(len(sizes))
    is_full = smaller + ascending * num_from_here <= targets[group]
    num_full = np.bincount(group, weights=is_full, minlength=num_groups).astype(np.int64)
    spent = np.bincount(group, weights=ascending * is_full, minlength=num_groups).astype(np.int64)
    open_members = counts - num_full
    level, remainder = np.divmod(targets - spent, np.maximum(open_members, 1))
    result = np.empty(len(sizes), dtype=np.int64)
    result[order] = np.where(is_full, ascending, level[group])
    # The remainder goes to open members in random order, one each.
    with_room = np.sort(order[~is_full & (remainder[group] > 0)])
    if len(with_room):
        shuffled = with_room[np.lexsort((rng.tickets(rng_key, 0, len(sizes))[with_room], group[with_room]))]
        result[shuffled[position_in_group(group[shuffled]) < remainder[group[shuffled]]]] += 1
    return result


def apportion(shares: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """Amounts (K,) int64 in proportion to `shares` (K,) int64, at most `sizes` (K,), that add up to `total`.

    Fractions are rounded by largest remainders, the first of equal ones. What does not fit is shared over the others. The
    amounts add up to less than `total` only if all groups with a share are full.
    """
    amounts = np.zeros(len(shares), dtype=np.int64)
    while True:
        open_shares = np.where(amounts < sizes, shares, 0)
        unplaced = min(total, int(sizes[shares > 0].sum())) - int(amounts.sum())
        if unplaced == 0:
            return amounts
        whole = int(open_shares.sum())
        more, remainder = np.divmod(unplaced * open_shares, whole)
        more[np.argsort(-remainder, kind="stable")[: unplaced - int(more.sum())]] += 1
        amounts = np.minimum(amounts + more, sizes)


def position_in_group(group: np.ndarray) -> np.ndarray:
    """(M,): the number of each item within its group, from 0, for ascending `group` (M,)."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(first, np.diff(first, append=len(group)))
