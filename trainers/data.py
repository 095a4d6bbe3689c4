"""The loader: selected samples from tar shards, in an order that depends on the seed alone.

The samples shown during training are one endless stream. Position p of it lies in epoch p // E and holds what that epoch's
permutation puts there; step s is the positions [s·G, (s + 1)·G) of a global batch G. Ranks take turns inside a step. So any
number of ranks and threads sees the same steps, and resuming at a step needs no state but its number.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curation import rng
from curation.errors import DataError
from trainers import views
from trainers.config import ViewsConfig
from trainers.images import decode, to_square

ROWS_PER_EPOCH = "rows_per_epoch"
"""In the schema's metadata of a training list: how many of its rows an epoch shows, others each time."""


@dataclass(frozen=True)
class SampleList:
    """Samples inside tar shards: where the bytes of each begin and end. N rows."""

    shards: tuple[Path, ...]
    shard: np.ndarray
    """(N,) int32: index into `shards`."""
    offset: np.ndarray
    """(N,) int64: of the image's first byte in its tar."""
    size: np.ndarray
    """(N,) int64: bytes."""
    row_id: np.ndarray
    """(N,) int64."""
    repeats: np.ndarray
    """(N,) int32: how often an epoch shows the sample."""
    per_epoch: int | None = None
    """How many an epoch shows, drawn anew each time; None: all."""

    @classmethod
    def read(cls, path: Path, shard_directory: Path) -> "SampleList":
        """Read a training list, a Parquet file with columns row_id, shard, offset, size and optionally repeats."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is no readable Parquet file: {error}") from error
        wanted = ["row_id", "shard", "offset", "size"]
        if missing := [name for name in wanted if name not in table.column_names]:
            raise DataError(f"{path} lacks the columns {missing}; found {table.column_names}.")
        return cls.of(table, shard_directory)

    @classmethod
    def of(cls, table: pa.Table, shard_directory: Path) -> "SampleList":
        """From columns row_id, shard, offset, size and optionally repeats; `shard` is relative to the directory."""
        shards = table["shard"].combine_chunks().dictionary_encode()
        repeats = "repeats" in table.column_names
        per_epoch = (table.schema.metadata or {}).get(ROWS_PER_EPOCH.encode())
        return cls(
            shards=tuple(shard_directory / name for name in shards.dictionary.to_pylist()),
            shard=shards.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            row_id=table["row_id"].to_numpy(),
            repeats=table["repeats"].to_numpy() if repeats else np.ones(table.num_rows, dtype=np.int32),
            per_epoch=int(per_epoch) if per_epoch else None,
        )

    def __len__(self) -> int:
        return len(self.row_id)

    def squares(self, indices: np.ndarray, size: int) -> np.ndarray:
        """Samples at `indices` (M,), scaled and cut to (M, 3, size, size) uint8. Held in memory: for batches."""
        with ThreadPoolExecutor(2) as pool:
            images = pool.map(lambda index: to_square(self.image(int(index)), size).numpy(), indices)
            return np.stack(list(images)) if len(indices) else np.empty((0, 3, size, size), dtype=np.uint8)

    def image(self, index: int) -> np.ndarray:
        """Read and decode one sample: (H, W, 3) uint8."""
        shard = self.shards[self.shard[index]]
        try:
            with shard.open("rb") as file:
                file.seek(int(self.offset[index]))
                return decode(file.read(int(self.size[index])))
        except (OSError, DataError) as error:
            raise DataError(
                f"Sample {self.row_id[index]} at byte {self.offset[index]} of {shard} cannot be read: {error}. "
                "The shard was changed after it was written: restore it, or shard the source again."
            ) from error


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: B samples with their crops, view first."""

    row_id: np.ndarray
    """(B,) int64."""
    index: np.ndarray
    """(B,) int64: into the training list."""
    position: np.ndarray
    """(B,) int64: in the endless stream."""
    global_crops: Tensor
    """(2, B, 3, G, G) uint8."""
    local_crops: Tensor
    """(n, B, 3, L, L) uint8."""
    draws: views.Draws
    """What colour the crops become."""


class Loader:
    """Batches of one rank."""

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
    ) -> None:
        if global_batch_size % world_size:
            raise DataError(
                f"train.global_batch_size {global_batch_size} must be a multiple of the {world_size} ranks. "
                "Change one of them; the result depends on the global batch size only."
            )
        self._samples = samples
        self._config = config
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank, world_size
        self._threads = threads
        self._ends = np.cumsum(samples.repeats, dtype=np.int64)
        if len(self._ends) == 0 or self._ends[-1] == 0:
            raise DataError("There is nothing to train on: the training list is empty.")

    @property
    def epoch_size(self) -> int:
        """Samples that one epoch shows, repeats included."""
        return self._samples.per_epoch or int(self._ends[-1])

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Indices into the sample list of stream `positions` (B,)."""
        epochs = positions // self.epoch_size
        shown = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            stream = rng.key(self._seed, "order", int(epoch))
            shown[here] = rng.permute(stream, positions[here] % self.epoch_size, int(self._ends[-1]))
        return np.searchsorted(self._ends, shown, side="right")

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `first_step` to `first_step + num_steps`, decoded ahead in threads."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:
            ahead: deque[tuple[np.ndarray, np.ndarray, views.Draws, list[Future[tuple[Tensor, Tensor]]]]] = deque()
            try:
                for step in range(first_step, first_step + num_steps + 2):
                    if step < first_step + num_steps:
                        ahead.append(self._begin(step, pool))
                    if step >= first_step + 2:
                        position, index, draws, futures = ahead.popleft()
                        cut = [future.result() for future in futures]
                        yield Batch(
                            row_id=self._samples.row_id[index],
                            index=index,
                            position=position,
                            global_crops=torch.stack([pair[0] for pair in cut], dim=1),
                            local_crops=torch.stack([pair[1] for pair in cut], dim=1),
                            draws=draws,
                        )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, step: int, pool: ThreadPoolExecutor
    ) -> tuple[np.ndarray, np.ndarray, views.Draws, list[Future[tuple[Tensor, Tensor]]]]:
        start = step * self._global_batch_size
        positions = np.arange(start + self._rank, start + self._global_batch_size, self._world_size)
        indices = self.order(positions)
        draws = views.Draws.of(self._config, positions, stream=rng.key(self._seed, "views"))
        futures = [pool.submit(self._crops, int(index), numbers) for index, numbers in zip(indices, draws.numbers, strict=True)]
        return positions, indices, draws, futures

    def _crops(self, index: int, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        return views.crops(self._config, self._samples.image(index), numbers)
