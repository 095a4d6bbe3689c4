"""Exact budgets over groups: how many of each."""

import numpy as np

from curation.base import rng


def water_fill(sizes: np.ndarray, offsets: np.ndarray, targets: np.ndarray, *, rng_key: int) -> np.ndarray:
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
    result = np.empty(len(sizes), dtype=np.int64)
    result[order] = np.where(brimful, ascending, level[group])
    # The remainder goes to open members in random order, one each.
    players = np.sort(order[~brimful & (remainder[group] > 0)])
    if len(players):
        lottery = players[np.lexsort((rng.tickets(rng_key, 0, len(sizes))[players], group[players]))]
        result[lottery[place_in_group(group[lottery]) < remainder[group[lottery]]]] += 1
    return result


def apportion(shares: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """Amounts (K,) int64 in proportion to `shares` (K,) int64, at most `sizes`, that add up to `total`.

    By largest remainders, the first of equal ones. What does not fit passes on to the others. They add up to less only if
    all that have a share are full.
    """
    amounts = np.zeros(len(shares), dtype=np.int64)
    while True:
        open_shares = np.where(amounts < sizes, shares, 0)
        left = min(total, int(sizes[shares > 0].sum())) - int(amounts.sum())
        if left == 0:
            return amounts
        whole = int(open_shares.sum())
        more, remainder = np.divmod(left * open_shares, whole)
        more[np.argsort(-remainder, kind="stable")[: left - int(more.sum())]] += 1
        amounts = np.minimum(amounts + more, sizes)


def place_in_group(group: np.ndarray) -> np.ndarray:
    """(M,) the number of each item within its group, for ascending `group` (M,)."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(first, np.diff(first, append=len(group)))
