"""Memory that crosses to a device, and room for large tensors on the CPU that is taken again once nobody holds it.

The system takes large allocations back at once and hands out zeroed pages anew, which costs up to ten times what is then
written into them. GPUs and pinned memory have such a pool in torch already.
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_KEPT = 4
_free: dict[int, list[np.ndarray]] = defaultdict(list)


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """As `torch.empty` on the CPU."""
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        room = _free[num_bytes].pop()
    except IndexError:
        room = np.empty(num_bytes, dtype=np.uint8)
    # Every tensor over these bytes holds `lent`, so it goes when the last of them does.
    lent = room.view()
    weakref.finalize(lent, _give_back, room).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def on(device: torch.device, array: np.ndarray) -> Tensor:
    """An array as a tensor on `device`. From pinned memory if that is a GPU: from any other the host would wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _give_back(room: np.ndarray) -> None:
    if len(kept := _free[room.nbytes]) < _KEPT:
        kept.append(room)
