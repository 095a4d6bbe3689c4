"""Who sums: one seam between the numerics and whatever runs them."""

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist


class Collectives(Protocol):
    """Workers that hold different rows and must agree. Every worker makes the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The elementwise sum of one equally shaped array from each worker."""
        ...

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Each worker's array, in rank order, on every worker. Lengths of the first axis may differ."""
        ...


class Alone:
    """One worker."""

    rank = 0
    size = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array]


class TorchCollectives:
    """The workers of the default `torch.distributed` process group (gloo, or NCCL with one GPU each)."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def sum(self, array: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.array(array)).to(self._device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        lengths = self.sum(np.eye(self.size, dtype=np.int64)[self.rank] * len(array))
        padded = np.zeros((int(lengths.max()), *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        mine = torch.from_numpy(padded).to(self._device)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return [tensor.cpu().numpy()[:length] for tensor, length in zip(everyone, lengths, strict=True)]


def place_among(workers: Collectives, num_rows: int) -> tuple[int, int]:
    """Where the `num_rows` of this worker begin among everyone's, and how many all have."""
    counts = np.concatenate(workers.gather(np.array([num_rows])))
    return int(counts[: workers.rank].sum()), int(counts.sum())
