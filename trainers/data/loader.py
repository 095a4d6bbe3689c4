"""The loader: selected samples from tar shards, in an order that depends on the seed alone.

The samples shown during training are one endless stream (`order`); step s is the positions [s·G, (s + 1)·G) of it for a global
batch G. Ranks take turns inside a step. So any number of ranks and processes sees the same steps, and resuming at a step
needs no state but its number.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.errors import DataError
from trainers.data import crop_workers, stores, views
from trainers.data.config import OrderName, ViewsConfig
from trainers.data.order import order_of
from trainers.data.resident import ResidentImages
from trainers.data.samples import BadSampleError, SampleList
from trainers.data.shard_reader import RESTORE, UNREADABLE, ShardReader
from trainers.ranks import ranks_per_node
from trainers.tensor_memory import recycled_empty

_BATCHES_AHEAD = 2
_MAX_WORKERS = 8
_PLANNED_POSITIONS = 4096
_REPLACEMENTS = 20
_MIN_JUDGED = 1000


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: B samples with their crops, view first."""

    row_id: np.ndarray
    """(B,) int64."""
    index: np.ndarray
    """(B,) int64: into the sample list."""
    label: np.ndarray
    """(B,) int64: -1 where the list has none."""
    position: np.ndarray
    """(B,) int64: in the endless stream."""
    global_crops: Tensor
    """(V, B, 3, G, G) uint8."""
    local_crops: Tensor
    """(n, B, 3, L, L) uint8."""
    draws: views.Draws
    """The random draws of the samples, which also decide the changes of colour."""
    replaced: np.ndarray
    """(R,) int64: row ids of samples that should be here but cannot be read; others take their place."""


@dataclass(frozen=True)
class _Shown:
    """The samples of one rank at a step, and their random draws."""

    positions: np.ndarray
    indices: np.ndarray
    draws: views.Draws


@dataclass(frozen=True)
class _Replaced:
    """A sample whose place another one takes, and the reason."""

    index: int
    reason: BadSampleError


class Loader:
    """The batches of one rank.

    A sample that cannot be read or decoded is replaced by another, drawn by its position in the stream and so the same on any
    number of ranks. More than `max_bad_fraction` of those shown raises DataError; a missing shard does at once.
    """

    def __init__(
        self,
        samples: SampleList,
        config: ViewsConfig,
        *,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        order: OrderName = "shuffled",
        max_bad_fraction: float = 0.01,
        max_resident_bytes: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if global_batch_size % world_size:
            raise DataError(
                f"train.global_batch_size {global_batch_size} must be a multiple of the {world_size} ranks. "
                "Change one of them; the result depends on the global batch size only."
            )
        if samples.num_entries == 0:
            raise DataError("There is nothing to train on: the training list is empty.")
        if missing := stores.missing(samples.shards):
            raise DataError(f"{len(missing):,} of {len(samples.shards):,} shards are missing, such as {missing[0]}. {RESTORE}")
        self._samples = samples
        self._reader = ShardReader(samples)
        if any(map(stores.is_url, samples.shards)):
            with suppress(BadSampleError):
                self._reader.read(0)  # an unreadable store raises here, once, and not in every process
        workers = workers or min(_MAX_WORKERS, max(1, _cores() // ranks_per_node()))
        self._resident = ResidentImages.of(samples, max_resident_bytes, device or torch.device("cpu"), workers)
        self._config = config
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank, world_size
        self._workers = workers
        if self._resident is None:
            crop_workers.server()  # ready by the time that networks are built
        self._order = order_of(samples, order, seed, global_batch_size)
        self._max_bad_fraction = max_bad_fraction
        self._planned: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self.waited = 0.0
        """Seconds that the iteration over `batches` has waited for them."""
        self.shown, self.replaced = 0, 0
        """Number of samples given out, and of those among them that replace one that cannot be read."""

    @property
    def epoch_size(self) -> int:
        """Number of samples that one epoch shows, repeats included."""
        return self._order.epoch_size

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Indices into the sample list of stream `positions` (B,)."""
        return self._order.at(positions)

    def batches(self, first_step: int, num_steps: int, sizes: tuple[int, int] | None = None) -> Iterator[Batch]:
        """The batches of steps `first_step` to `first_step + num_steps`, decoded ahead in processes.

        `sizes` of the global and the local crops take the place of those of the configuration.
        """
        sizes = sizes or (self._config.global_size, self._config.local_size)
        steps = range(first_step, first_step + num_steps)
        if self._resident is not None:
            yield from (self._from_memory(self._shown(step), self._resident, sizes) for step in steps)
            return
        buffers = crop_workers.SharedBuffers(
            shards=self._samples.shards,
            slots=_BATCHES_AHEAD + 1,
            batch_size=self._global_batch_size // self._world_size,
            views=list(zip((self._config.num_global, self._config.num_local), sizes, strict=True)),
        )
        with closing(crop_workers.CropWorkers(buffers, self._workers)) as workers:
            ahead: deque[_Shown] = deque()
            for step in range(first_step, first_step + num_steps + _BATCHES_AHEAD):
                if step in steps:
                    ahead.append(self._shown(step))
                    workers.begin(step % buffers.slots, self._samples, ahead[-1].indices, ahead[-1].draws)
                if (due := step - _BATCHES_AHEAD) in steps:
                    yield self._from_workers(ahead.popleft(), workers, due % buffers.slots)

    def _shown(self, step: int) -> _Shown:
        positions = self._positions(step)
        draws = views.Draws.of(self._config, positions, rng_key=rng.key(self._seed, "views"))
        return _Shown(positions, self._indices(step), draws)

    def _from_memory(self, shown: _Shown, images: ResidentImages, sizes: tuple[int, int]) -> Batch:
        began = time.perf_counter()
        bad = []
        for place in np.flatnonzero(np.isin(shown.indices, list(images.bad))).tolist():
            reason = images.bad[int(shown.indices[place])]
            bad.append(self._replace(shown, place, reason, images.raise_if_bad))
        boxes = shown.draws.boxes(slice(None), *images.pixels.shape[2:])
        num = self._config.num_global
        crops = images.cut(shown.indices, boxes[:, :num], sizes[0]), images.cut(shown.indices, boxes[:, num:], sizes[1])
        self.waited += time.perf_counter() - began
        return self._batch(shown, crops, bad)

    def _from_workers(self, shown: _Shown, workers: crop_workers.CropWorkers, slot: int) -> Batch:
        began = time.perf_counter()
        crops, places = workers.crops(slot)
        bad = []
        for place in places.tolist():
            into = [crop for group in crops for crop in group[:, place]]
            use = partial(self._cut, draws=shown.draws, place=place, into=into)
            try:
                use(int(shown.indices[place]))
            except BadSampleError as reason:
                bad.append(self._replace(shown, place, reason, use))
        first, second = (_copied(group).permute(0, 1, 4, 2, 3) for group in crops)
        self.waited += time.perf_counter() - began
        return self._batch(shown, (first, second), bad)

    def _batch(self, shown: _Shown, crops: tuple[Tensor, Tensor], bad: list["_Replaced"]) -> Batch:
        """The batch to give out. Raises DataError once too many samples are replaced."""
        self.shown += len(shown.indices)
        self.replaced += len(bad)
        if self.replaced > self._max_bad_fraction * max(self.shown, _MIN_JUDGED):
            raise DataError(
                f"{self.replaced:,} of {self.shown:,} samples could not be read, more than train.max_bad_fraction "
                f"{self._max_bad_fraction} allows. For example: {bad[0].reason}"
            ) from bad[0].reason
        label = self._samples.label
        return Batch(
            row_id=self._samples.row_id[shown.indices],
            index=shown.indices,
            label=np.full(len(shown.indices), -1) if label is None else label[shown.indices],
            position=shown.positions,
            global_crops=crops[0],
            local_crops=crops[1],
            draws=shown.draws,
            replaced=self._samples.row_id[[one.index for one in bad]],
        )

    def _positions(self, step: int) -> np.ndarray:
        """This rank's positions in the stream."""
        start = step * self._global_batch_size
        return np.arange(start + self._rank, start + self._global_batch_size, self._world_size)

    def _indices(self, step: int) -> np.ndarray:
        """The indices (B,) that this rank shows at `step`, computed for many steps at once: few cost numpy as much as many.

        But not for more than an epoch, as each epoch has a different order.
        """
        size = self._global_batch_size // self._world_size
        together = max(1, min(_PLANNED_POSITIONS, self.epoch_size) // size)
        block, within = divmod(step, together)
        if self._planned[0] != block:
            steps = range(block * together, (block + 1) * together)
            self._planned = block, self.order(np.concatenate([self._positions(s) for s in steps]))
        return self._planned[1][within * size : (within + 1) * size].copy()

    def _cut(self, index: int, draws: views.Draws, place: int, into: list[np.ndarray]) -> None:
        if bad := views.cut({place: self._reader.read(index)}, draws, {place: into}):
            raise self._samples.bad(index, f"{bad[place]}. {UNREADABLE}") from bad[place]

    def _replace(self, shown: _Shown, place: int, reason: BadSampleError, use: Callable[[int], None]) -> "_Replaced":
        """Put another sample at `place`: the first for which `use` does not raise. Raises BadSampleError if there is none."""
        bad = int(shown.indices[place])
        position = shown.positions[place : place + 1]
        draws = rng.uniform(rng.key(self._seed, "replacements"), position, _REPLACEMENTS)[0]
        for index in self._samples.rows_of_entries(draws * self._samples.num_entries).tolist():
            try:
                use(index)
            except BadSampleError as error:
                last = error
            else:
                shown.indices[place] = index
                return _Replaced(bad, reason)
        raise last


def _cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _copied(crops: np.ndarray) -> Tensor:
    """A copy, in pinned memory if there is a GPU."""
    if torch.cuda.is_available():
        return torch.from_numpy(crops).pin_memory()
    copy = recycled_empty(crops.shape, torch.uint8)
    np.copyto(copy.numpy(), crops)  # torch's threads would go on spinning afterwards, on the cores that decode
    return copy
