"""Collective operations: the seam between the numerics and the processes that share the rows."""

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

_MAX_AXES = 8


class Collectives(Protocol):
    """Workers that hold different rows and must agree. Every worker makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The elementwise sum of one equally shaped array from each worker."""
        ...

    def broadcast(self, array: np.ndarray | None, source: int) -> np.ndarray:
        """The array of worker `source`, on every worker; what the others pass is ignored and may be None.

        Shape and dtype need not be known to the others. Use it for whatever only one worker has: it sends the array once,
        where `gather` would send as many padded copies as there are workers.
        """
        ...

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all workers in rank order, on every worker. Lengths of the first axis may differ."""
        ...


class Alone:
    """A single worker."""

    rank = 0
    size = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def broadcast(self, array: np.ndarray | None, source: int) -> np.ndarray:
        if array is None or source != 0:
            raise ValueError(f"the only worker is number 0 and must broadcast an array; got {array} of worker {source}")
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

    def broadcast(self, array: np.ndarray | None, source: int) -> np.ndarray:
        # First what the receivers must know to allocate memory: dtype, number of axes, shape.
        header = torch.zeros(2 + _MAX_AXES, dtype=torch.int64)
        if self.rank == source:
            if array is None or array.ndim > _MAX_AXES or array.dtype.hasobject:
                raise ValueError(f"worker {source} must broadcast an array of numbers of at most {_MAX_AXES} axes")
            header[0] = int.from_bytes(array.dtype.str.encode(), "little")
            header[1] = array.ndim
            header[2 : 2 + array.ndim] = torch.tensor(array.shape, dtype=torch.int64)
        header = header.to(self._device)
        dist.broadcast(header, source)
        code, num_axes, *axes = header.tolist()
        dtype, shape = np.dtype(code.to_bytes(8, "little").rstrip(b"\0").decode()), axes[:num_axes]
        sent = array if self.rank == source else None
        buffer = np.empty(shape, dtype) if sent is None else np.array(sent)  # a copy: sender and result share no memory
        # Sent as bytes, because torch lacks some of numpy's types.
        content = torch.from_numpy(buffer.reshape(-1).view(np.uint8)).to(self._device)
        if content.numel():
            dist.broadcast(content, source)
        return content.cpu().numpy().view(dtype).reshape(shape)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        lengths = self.sum(np.eye(self.size, dtype=np.int64)[self.rank] * len(array))
        padded = np.zeros((int(lengths.max()), *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        sent = torch.from_numpy(padded).to(self._device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return [tensor.cpu().numpy()[:length] for tensor, length in zip(received, lengths, strict=True)]


def place_among(workers: Collectives, num_rows: int) -> tuple[int, int]:
    """The number of rows on workers of smaller rank, and on all workers, where this worker has `num_rows`."""
    counts = np.concatenate(workers.gather(np.array([num_rows])))
    return int(counts[: workers.rank].sum()), int(counts.sum())
