"""Orders in which samples are shown: an endless stream, each position of which is computed independently.

An order is a pure function of the seed and the list, so any number of ranks sees the same stream, and resuming needs no
state. Rows are counted with their repeats: a row that an epoch shows three times is three entries.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from trainers.data.config import OrderName
from trainers.data.samples import SampleList

_MIXED_TOGETHER = 10_000


class Order(Protocol):
    """A rule that says which row is shown at each position of the stream."""

    epoch_size: int
    """Number of positions in an epoch."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows (B,) int64 at `positions` (B,) int64 of the stream."""
        ...


class Shuffled:
    """Each epoch in a random order: all entries, or the first `per_epoch` of that order (RS2, Okanovic et al. 2024)."""

    def __init__(self, samples: SampleList, seed: int) -> None:
        self._samples, self._num_entries = samples, samples.num_entries
        self._seed = seed
        self.epoch_size = samples.per_epoch or self._num_entries

    def at(self, positions: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(positions, self.epoch_size)
        entries = np.empty_like(positions)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            key = rng.key(self._seed, "order", int(epoch))
            entries[of_epoch] = rng.permute(key, within[of_epoch], self._num_entries)
        return self._samples.rows_of_entries(entries)


class _EntriesByLabel:
    """The entries of each label, in the order of the rows. Labels are numbered in their order, 0 to L - 1."""

    def __init__(self, samples: SampleList) -> None:
        arrays = samples.derived("by-label", partial(_sort_by_label, samples))
        self._rows, self._ends, self._starts = arrays["rows"], arrays.get("ends"), arrays["starts"]
        num_entries = len(self._rows) if self._ends is None else self._ends[-1]
        self.sizes = np.diff(self._starts, append=num_entries)
        """(L,) int64: number of entries of each label."""

    def rows(self, label: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """The rows (B,) int64 of the `entry`-th entry (B,) of each `label` (B,)."""
        place = self._starts[label] + entry
        return self._rows[place if self._ends is None else np.searchsorted(self._ends, place, side="right")]


def _sort_by_label(samples: SampleList) -> dict[str, np.ndarray]:
    """The rows of a list sorted by label, those with no entry left out.

    "rows" (R,); "ends" (R,), the number of entries up to and including those of each of them, unless every row is one entry;
    "starts" (L,), the first entry of each label. All int64.
    """
    label, repeats = samples.label, samples.repeats
    assert label is not None
    rows = np.arange(len(samples)) if repeats is None else np.flatnonzero(repeats > 0)
    rows = rows[np.argsort(label[rows], kind="stable")]
    first = np.flatnonzero(np.diff(label[rows], prepend=label[rows[0]] - 1))
    if repeats is None:
        return {"rows": rows, "starts": first}
    ends = np.cumsum(repeats[rows], dtype=np.int64)
    return {"rows": rows, "ends": ends, "starts": np.where(first > 0, ends[first - 1], 0)}


class Balanced:
    """Every label equally often, however many samples it has: L positions in a row show each of L labels once.

    A label goes through all its entries, in a different order each time, before it shows one again.
    """

    def __init__(self, samples: SampleList, seed: int) -> None:
        self._entries = _EntriesByLabel(samples)
        self._seed = seed
        self.epoch_size = samples.per_epoch or int(self._entries.sizes.sum())

    def at(self, positions: np.ndarray) -> np.ndarray:
        sizes = self._entries.sizes
        turn, place = np.divmod(positions, len(sizes))
        key = rng.key(self._seed, "labels")
        label = rng.permute_each(key, turn, place, np.full_like(place, len(sizes)))
        # In each turn a label is shown once, so the turn also says how often it was shown before.
        cycle, within = np.divmod(turn, sizes[label])
        entry = rng.permute_each(rng.key(self._seed, "entries"), cycle * len(sizes) + label, within, sizes[label])
        return self._entries.rows(label, entry)


class Distinct:
    """No label twice in a step where that is possible, as contrasting clusters needs (G-SimCLR, Chakraborty et al. 2020).

    A pass over the E entries has T = floor(E / G) steps. Entries are dealt to the steps in turn, label after label, so one
    with at most T entries never meets itself, and a larger one is spread evenly. The rest of E / G is left out of this pass;
    which entries those are, the order of labels, of entries, of steps and of places in a step all change with each pass.
    """

    def __init__(self, samples: SampleList, seed: int, global_batch_size: int) -> None:
        self._entries = _EntriesByLabel(samples)
        self._num = int(self._entries.sizes.sum())
        self._batch = global_batch_size
        self._steps = self._num // global_batch_size
        if self._steps == 0:
            raise DataError(
                f"train.order distinct needs at least one whole step: the training list shows {self._num:,} samples an epoch, "
                f"train.global_batch_size is {global_batch_size:,}. Lower it, or choose another order."
            )
        self._seed = seed
        self._plan = lru_cache(2)(self._plan_pass)
        self.epoch_size = samples.per_epoch or self._steps * global_batch_size

    def at(self, positions: np.ndarray) -> np.ndarray:
        step, place = np.divmod(positions, self._batch)
        place = rng.permute_each(rng.key(self._seed, "places"), step, place, np.full_like(place, self._batch))
        passes, step = np.divmod(step, self._steps)
        rows = np.empty_like(positions)
        for number in np.unique(passes):
            of_pass = passes == number
            labels, ends, first = self._plan(int(number))
            dealt = place[of_pass] * self._steps + rng.permute(self._key("steps", number), step[of_pass], self._steps)
            dealt = (dealt + first) % self._num
            turn = np.searchsorted(ends, dealt, side="right")
            label = labels[turn]
            size = self._entries.sizes[label]
            entry = rng.permute_each(self._key("entries", number), label, dealt - (ends[turn] - size), size)
            rows[of_pass] = self._entries.rows(label, entry)
        return rows

    def _plan_pass(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The labels (L,) in the order in which they are dealt, the ends (L,) of their entries, and the first entry dealt."""
        num_labels = len(self._entries.sizes)
        labels = rng.permute(self._key("labels", number), np.arange(num_labels), num_labels)
        first = rng.bits(self._key("first", number), np.array([0]), 2)[0].astype(np.int64)
        return labels, np.cumsum(self._entries.sizes[labels]), int((first[0] << 31 ^ first[1]) % self._num)

    def _key(self, what: str, number: int) -> int:
        return rng.key(self._seed, what, int(number))


class Mixed:
    """Several lists, each in its own order and as often as its weight says.

    Each list has its exact share of every 10,000 positions, rounded to whole samples, at places drawn anew each time. A draw
    at each position would be as simple, but then the stream would have to be counted from its start to know how far a list
    has been shown; a fixed pattern would always give the same ranks the same list.
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
            of_source = source == number
            in_source = block[of_source] * (starts[number + 1] - starts[number]) + slot[of_source] - starts[number]
            rows[of_source] = self._offsets[number] + self._orders[number].at(in_source)
        return rows


def order_of(samples: SampleList, name: OrderName, seed: int, global_batch_size: int) -> Order:
    """The order called `name`. Raises DataError if the list cannot be shown in it."""
    if samples.parts:
        if name == "distinct":
            raise DataError("train.order distinct is for one training list: labels of several say nothing of one another.")
        orders = [
            order_of(part, name, rng.key(seed, "part", number), global_batch_size)
            for number, (part, _) in enumerate(samples.parts)
        ]
        offsets = np.cumsum([0, *(len(part) for part, _ in samples.parts)])
        return Mixed(orders, [weight for _, weight in samples.parts], offsets.tolist(), seed)
    if name == "shuffled":
        return Shuffled(samples, seed)
    if samples.label is None:
        raise DataError(f"train.order {name} needs labels: name their column in train.label.")
    return Balanced(samples, seed) if name == "balanced" else Distinct(samples, seed, global_batch_size)
