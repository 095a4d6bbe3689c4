"""In which order samples are shown: an endless stream, each position of which is computed on its own.

An order is a pure function of the seed and the list, so any number of ranks sees the same stream, and to resume needs no
state. Rows are counted with their repeats: a row shown three times an epoch is three entries.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from curation.base import rng
from curation.base.errors import DataError

_MIXED_TOGETHER = 10_000


class Order(Protocol):
    """What is shown at each position of the stream."""

    epoch_size: int
    """Positions that count as an epoch."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows (B,) int64 at `positions` (B,) int64 of the stream."""
        ...


class Shuffled:
    """Each epoch in an order of its own: all entries, or the first `per_epoch` of that order (RS2, Okanovic et al. 2024)."""

    def __init__(self, repeats: np.ndarray, per_epoch: int | None, seed: int) -> None:
        self._ends = np.cumsum(repeats, dtype=np.int64)
        self._seed = seed
        self.epoch_size = per_epoch or int(self._ends[-1])

    def at(self, positions: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(positions, self.epoch_size)
        entries = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            entries[here] = rng.permute(rng.key(self._seed, "order", int(epoch)), within[here], int(self._ends[-1]))
        return np.searchsorted(self._ends, entries, side="right")


class _Labelled:
    """The entries of each label, found by number."""

    def __init__(self, repeats: np.ndarray, labels: np.ndarray) -> None:
        self._rows = np.flatnonzero(repeats > 0)
        self._rows = self._rows[np.argsort(labels[self._rows], kind="stable")]
        self._ends = np.cumsum(repeats[self._rows], dtype=np.int64)
        first = np.flatnonzero(np.diff(labels[self._rows], prepend=labels[self._rows[0]] - 1))
        self._starts = np.concatenate([[0], self._ends])[first]
        self.sizes = np.diff(self._starts, append=self._ends[-1])
        """(L,) int64: entries of each label."""

    def rows(self, label: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """The row of the `entry`-th entry of each `label` (B,), a number below L."""
        return self._rows[np.searchsorted(self._ends, self._starts[label] + entry, side="right")]


class Balanced:
    """Every label equally often, however many samples it has: L positions in a row show each of L labels once.

    A label goes through all its entries, in an order of its own each time, before it shows one again.
    """

    def __init__(self, repeats: np.ndarray, labels: np.ndarray, per_epoch: int | None, seed: int) -> None:
        self._entries = _Labelled(repeats, labels)
        self._seed = seed
        self.epoch_size = per_epoch or int(self._entries.sizes.sum())

    def at(self, positions: np.ndarray) -> np.ndarray:
        sizes = self._entries.sizes
        turn, place = np.divmod(positions, len(sizes))
        stream = rng.key(self._seed, "labels")
        label = rng.permute_each(stream, turn, place, np.full_like(place, len(sizes)))
        # In each turn a label is shown once, so the turn also says how often it was shown before.
        cycle, within = np.divmod(turn, sizes[label])
        entry = rng.permute_each(rng.key(self._seed, "entries"), cycle * len(sizes) + label, within, sizes[label])
        return self._entries.rows(label, entry)


class Distinct:
    """No label twice in a step where that is possible, as contrasting clusters wants (G-SimCLR, Chakraborty et al. 2020).

    A pass over the E entries has T = floor(E / G) steps. Entries are dealt to the steps in turn, label after label, so one
    with at most T entries never meets itself, and a larger one is spread evenly. The rest of E / G is left out of this pass;
    which entries those are, the order of labels, of entries, of steps and of places in a step all change with each pass.
    """

    def __init__(
        self, repeats: np.ndarray, labels: np.ndarray, per_epoch: int | None, seed: int, global_batch_size: int
    ) -> None:
        self._entries = _Labelled(repeats, labels)
        self._num = int(self._entries.sizes.sum())
        self._batch = global_batch_size
        self._steps = self._num // global_batch_size
        if self._steps == 0:
            raise DataError(
                f"train.order distinct wants at least one whole step: the training list shows {self._num:,} samples an epoch, "
                f"train.global_batch_size is {global_batch_size:,}. Lower it, or choose another order."
            )
        self._seed = seed
        self._plan = lru_cache(2)(self._plan_pass)
        self.epoch_size = per_epoch or self._steps * global_batch_size

    def at(self, positions: np.ndarray) -> np.ndarray:
        step, place = np.divmod(positions, self._batch)
        place = rng.permute_each(rng.key(self._seed, "places"), step, place, np.full_like(place, self._batch))
        passes, step = np.divmod(step, self._steps)
        rows = np.empty_like(positions)
        for number in np.unique(passes):
            here = passes == number
            labels, ends, first = self._plan(int(number))
            dealt = place[here] * self._steps + rng.permute(self._key("steps", number), step[here], self._steps)
            dealt = (dealt + first) % self._num
            turn = np.searchsorted(ends, dealt, side="right")
            label = labels[turn]
            size = self._entries.sizes[label]
            entry = rng.permute_each(self._key("entries", number), label, dealt - (ends[turn] - size), size)
            rows[here] = self._entries.rows(label, entry)
        return rows

    def _plan_pass(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The labels (L,) in the order in which they are dealt, where the entries of each end, and where dealing begins."""
        num_labels = len(self._entries.sizes)
        labels = rng.permute(self._key("labels", number), np.arange(num_labels), num_labels)
        first = rng.bits(self._key("first", number), np.array([0]), 2)[0].astype(np.int64)
        return labels, np.cumsum(self._entries.sizes[labels]), int((first[0] << 31 ^ first[1]) % self._num)

    def _key(self, what: str, number: int) -> int:
        return rng.key(self._seed, what, int(number))


class Mixed:
    """Several sources, each in its own order and as often as its weight says.

    Of every 10,000 positions a source has its exact share, rounded to whole samples, in places drawn anew each time. A draw at
    each position would be as simple, but then a source would have to be counted from the start of the stream to know how far
    it has been shown; a fixed pattern would always give the same ranks the same source.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], offsets: Sequence[int], seed: int) -> None:
        self._orders, self._offsets = orders, offsets
        share = np.cumsum(weights) / np.sum(weights)
        self._ends = np.rint(share * _MIXED_TOGETHER).astype(np.int64)
        self._seed = seed
        self.epoch_size = sum(order.epoch_size for order in orders)

    def at(self, positions: np.ndarray) -> np.ndarray:
        block, place = np.divmod(positions, _MIXED_TOGETHER)
        size = np.full_like(place, _MIXED_TOGETHER)
        slot = rng.permute_each(rng.key(self._seed, "mix"), block, place, size)
        source = np.searchsorted(self._ends, slot, side="right")
        starts = np.concatenate([[0], self._ends])
        rows = np.empty_like(positions)
        for number in np.unique(source):
            here = source == number
            own = block[here] * (starts[number + 1] - starts[number]) + slot[here] - starts[number]
            rows[here] = self._offsets[number] + self._orders[number].at(own)
        return rows
