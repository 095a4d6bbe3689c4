"""The request to stop a training, agreed on by all ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.ranks import rank, world_size


class StopFlag:
    """Whether rank 0 has found the stop file, with the same answer on all ranks at the same step.

    The message that rank 0 sends at one step is read at the next, so that no rank waits for it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._sent: tuple[Tensor, Any] | None = None

    def is_set(self) -> bool:
        """Whether to stop after this step. All ranks call it once per step."""
        exists = self._path is not None and rank() == 0 and self._path.exists()
        if self._group is None:
            return exists
        before = self._sent
        flag = torch.tensor(float(exists))
        self._sent = flag, dist.broadcast(flag, 0, group=self._group, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])
