"""Memory for tensors: large CPU buffers that are used again, and the transfer of arrays to a device.

The operating system takes a large allocation back as soon as it is freed and hands out zeroed pages the next time, which costs
up to ten times as much as writing to them. For GPUs and pinned memory torch already has such a pool.
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MAX_KEPT = 4
"""Free buffers of one size that are kept."""
_free: dict[int, list[np.ndarray]] = defaultdict(list)


def recycled_empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor, as of `torch.empty`, whose memory is used again once no tensor refers to it."""
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        buffer = _free[num_bytes].pop()
    except IndexError:
        buffer = np.empty(num_bytes, dtype=np.uint8)
    # Every tensor over these bytes refers to `lent`, which is finalised together with the last of them.
    lent = buffer.view()
    weakref.finalize(lent, _give_back, buffer).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def _give_back(buffer: np.ndarray) -> None:
    if len(kept := _free[buffer.nbytes]) < _MAX_KEPT:
        kept.append(buffer)


def to_device(device: torch.device, array: np.ndarray) -> Tensor:
    """An array as a tensor on `device`; to a GPU it goes through pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
