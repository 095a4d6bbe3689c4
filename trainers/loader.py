"""The loader: selected samples from tar shards, in an order that depends on the seed alone.

The samples shown during training are one endless stream (`order`); step s is the positions [s·G, (s + 1)·G) of it for a global
batch G. Ranks take turns inside a step. So any number of ranks and threads sees the same steps, and resuming at a step needs
no state but its number.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from curation import rng
from curation.errors import DataError
from trainers import memory, views
from trainers.config import ViewsConfig
from trainers.order import Balanced, Distinct, Mixed, Order, OrderName, Shuffled
from trainers.resident import ResidentImages
from trainers.samples import RESTORE, BadSampleError, SampleList, ShardReader

_AHEAD = 2
_PLANNED = 4096
_REPLACEMENTS = 20
_BEFORE_JUDGED = 1000


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
    """What colour the crops become."""
    replaced: np.ndarray
    """(R,) int64: rows ids that should be here but cannot be read; others stand in for them."""


@dataclass
class _Begun:
    """A batch whose samples are being decoded."""

    positions: np.ndarray
    indices: np.ndarray
    crops: tuple[Tensor, Tensor]
    draws: views.Draws
    work: tuple[Future[list["_Replaced"]], ...] = ()


@dataclass(frozen=True)
class _Replaced:
    """A sample that another stands in for."""

    index: int
    why: BadSampleError


class Loader:
    """Batches of one rank.

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
        threads: int = 2,
        order: OrderName = "shuffled",
        max_bad_fraction: float = 0.01,
        most_resident_bytes: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if global_batch_size % world_size:
            raise DataError(
                f"train.global_batch_size {global_batch_size} must be a multiple of the {world_size} ranks. "
                "Change one of them; the result depends on the global batch size only."
            )
        if samples.repeats.sum() == 0:
            raise DataError("There is nothing to train on: the training list is empty.")
        found = {folder: set(os.listdir(folder)) for folder in {shard.parent for shard in samples.shards} if folder.is_dir()}
        missing = [shard for shard in samples.shards if shard.name not in found.get(shard.parent, ())]
        if missing:
            raise DataError(f"{len(missing):,} of {len(samples.shards):,} shards are missing, such as {missing[0]}. {RESTORE}")
        self._samples = samples
        self._resident = ResidentImages.of(samples, most_resident_bytes, device or torch.device("cpu"), threads)
        self._reader = ShardReader(samples)
        self._config = config
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank, world_size
        self._threads = threads
        self._order = _order_of(samples, order, seed, global_batch_size)
        self._max_bad_fraction = max_bad_fraction
        self._planned: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self.waited = 0.0
        """Seconds that whoever iterates over `batches` has waited for them."""
        self.shown, self.replaced = 0, 0
        """Samples given out, and those among them that stand in for one that cannot be read."""

    @property
    def epoch_size(self) -> int:
        """Samples that one epoch shows, repeats included."""
        return self._order.epoch_size

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Indices into the sample list of stream `positions` (B,)."""
        return self._order.at(positions)

    def batches(self, first_step: int, num_steps: int, sizes: tuple[int, int] | None = None) -> Iterator[Batch]:
        """The batches of steps `first_step` to `first_step + num_steps`, decoded ahead in threads.

        `sizes` of the global and the local crops take the place of those of the configuration.
        """
        sizes = sizes or (self._config.global_size, self._config.local_size)
        end = first_step + num_steps
        if self._resident is not None:
            for step in range(first_step, end):
                yield self._from_memory(step, self._resident, sizes)
            return
        # Torch, too, may use one thread in each of these: to share out operations as small as theirs costs more than it gains.
        with ThreadPoolExecutor(self._threads, "decode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[_Begun] = deque()
            try:
                for step in range(first_step, end + _AHEAD):
                    if step < end:
                        ahead.append(self._begin(step, pool, sizes))
                    if step >= first_step + _AHEAD:
                        yield self._finish(ahead.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _from_memory(self, step: int, images: ResidentImages, sizes: tuple[int, int]) -> Batch:
        began = time.perf_counter()
        positions, indices, draws = self._drawn(step)
        bad = []
        for place in np.flatnonzero(np.isin(indices, list(images.bad))).tolist():
            index = int(indices[place])
            bad.append(_Replaced(index, images.bad[index]))
            indices[place] = self._another(int(positions[place]), images.raise_if_bad)
        boxes = draws.boxes(slice(None), *images.pixels.shape[2:])
        num = self._config.num_global
        crops = images.cut(indices, boxes[:, :num], sizes[0]), images.cut(indices, boxes[:, num:], sizes[1])
        self.waited += time.perf_counter() - began
        return self._batch(_Begun(positions, indices, crops, draws), bad)

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray, views.Draws]:
        """This rank's positions in the stream at `step`, what is there, and how it is shown."""
        positions = self._positions(step)
        return positions, self._indices(step), views.Draws.of(self._config, positions, stream=rng.key(self._seed, "views"))

    def _begin(self, step: int, pool: ThreadPoolExecutor, sizes: tuple[int, int]) -> _Begun:
        positions, indices, draws = self._drawn(step)
        room = self._empty(len(positions), sizes)
        into = [group.numpy() for group in room]
        places = np.array_split(np.arange(len(positions)), min(len(positions), 4 * self._threads))
        work = tuple(pool.submit(self._cut, positions, indices, some, into, draws) for some in places)
        global_crops, local_crops = (group.permute(0, 1, 4, 2, 3) for group in room)
        return _Begun(positions, indices, (global_crops, local_crops), draws, work)

    def _finish(self, begun: _Begun) -> Batch:
        began = time.perf_counter()
        bad = [one for work in begun.work for one in work.result()]
        self.waited += time.perf_counter() - began
        return self._batch(begun, bad)

    def _batch(self, begun: _Begun, bad: list["_Replaced"]) -> Batch:
        """What is given out. Raises DataError once too much of it stands in for what cannot be read."""
        self.shown += len(begun.indices)
        self.replaced += len(bad)
        if self.replaced > self._max_bad_fraction * max(self.shown, _BEFORE_JUDGED):
            raise DataError(
                f"{self.replaced:,} of {self.shown:,} samples could not be read, more than train.max_bad_fraction "
                f"{self._max_bad_fraction} allows. For example: {bad[0].why}"
            ) from bad[0].why
        label = self._samples.label
        return Batch(
            row_id=self._samples.row_id[begun.indices],
            index=begun.indices,
            label=np.full(len(begun.indices), -1) if label is None else label[begun.indices],
            position=begun.positions,
            global_crops=begun.crops[0],
            local_crops=begun.crops[1],
            draws=begun.draws,
            replaced=self._samples.row_id[[one.index for one in bad]],
        )

    @cached_property
    def _ends(self) -> np.ndarray:
        """(N,) int64: samples shown in an epoch up to and with each, repeats included. Needed once a sample is bad."""
        return np.cumsum(self._samples.repeats, dtype=np.int64)

    def _positions(self, step: int) -> np.ndarray:
        """This rank's positions in the stream."""
        start = step * self._global_batch_size
        return np.arange(start + self._rank, start + self._global_batch_size, self._world_size)

    def _indices(self, step: int) -> np.ndarray:
        """What this rank shows at `step`, worked out for many steps at once: few positions cost numpy as much as many."""
        size = self._global_batch_size // self._world_size
        together = max(1, _PLANNED // size)
        block, within = divmod(step, together)
        if self._planned[0] != block:
            steps = range(block * together, (block + 1) * together)
            self._planned = block, self.order(np.concatenate([self._positions(s) for s in steps]))
        return self._planned[1][within * size : (within + 1) * size].copy()

    def _empty(self, num: int, sizes: tuple[int, int]) -> list[Tensor]:
        """Room for the global and the local crops of `num` samples, from where a GPU can fetch them if there is one.

        (V, B, S, S, 3): the channels of a pixel lie beside each other, as they do in decoded images.
        """
        views = (self._config.num_global, self._config.num_local)
        shapes = [(count, num, size, size, 3) for count, size in zip(views, sizes, strict=True)]
        if torch.cuda.is_available():
            return [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]
        return [memory.empty(shape, torch.uint8) for shape in shapes]

    def _cut(
        self, positions: np.ndarray, indices: np.ndarray, places: np.ndarray, crops: list[np.ndarray], draws: views.Draws
    ) -> list[_Replaced]:
        """Fill the `places` of `crops`, (V, B, S, S, 3) of each kind.

        Of a sample that cannot be read, says why, and puts into `indices` what replaces it.
        """
        replaced = []
        for place in places.tolist():
            into = [*crops[0][:, place], *crops[1][:, place]]
            cut = partial(self._cut_one, draws=draws, place=place, into=into)
            try:
                cut(int(indices[place]))
            except BadSampleError as why:
                replaced.append(_Replaced(int(indices[place]), why))
                indices[place] = self._another(int(positions[place]), cut)
        return replaced

    def _cut_one(self, index: int, draws: views.Draws, place: int, into: list[np.ndarray]) -> None:
        content = self._reader.read(index)
        try:
            views.cut(content, draws, place, into)
        except DataError as error:
            raise self._samples.bad(index, error) from error

    def _another(self, position: int, use: Callable[[int], None]) -> int:
        """Use another sample in place of the one at `position` of the stream: the first that `use` takes; returns its index."""
        ends = self._ends
        tries = rng.uniform(rng.key(self._seed, "replacements"), np.array([position]), _REPLACEMENTS)[0] * ends[-1]
        for index in np.searchsorted(ends, tries, side="right").tolist():
            try:
                use(index)
            except BadSampleError as error:
                why = error
            else:
                return index
        raise why


def _order_of(samples: SampleList, name: OrderName, seed: int, global_batch_size: int) -> Order:
    """The order called `name`. Raises DataError if the list cannot be shown so."""
    if samples.parts:
        if name == "distinct":
            raise DataError("train.order distinct is for one training list: labels of several say nothing of one another.")
        orders = [
            _order_of(part, name, rng.key(seed, "part", number), global_batch_size)
            for number, (part, _) in enumerate(samples.parts)
        ]
        offsets = np.cumsum([0, *(len(part) for part, _ in samples.parts)])
        return Mixed(orders, [weight for _, weight in samples.parts], offsets.tolist(), seed)
    if name == "shuffled":
        return Shuffled(samples.repeats, samples.per_epoch, seed)
    if samples.label is None:
        raise DataError(f"train.order {name} wants labels: name their column in train.label.")
    if name == "balanced":
        return Balanced(samples.repeats, samples.label, samples.per_epoch, seed)
    return Distinct(samples.repeats, samples.label, samples.per_epoch, seed, global_batch_size)
