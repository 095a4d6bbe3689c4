"""Checkpoints: sharded, complete or absent, written while training continues, and safe to read from untrusted sources.

A checkpoint is a directory of safetensors files, each rank's own, and `state.json`, which is written last. torch's distributed
checkpointing reads it back on any number of ranks, split in any way.
"""

import json
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from curation.base.errors import DataError
from curation.base.files import write_atomic
from trainers.output_files import STATE, complete_checkpoints, newest_checkpoint
from trainers.ranks import rank

# The checkpoint of the best evaluation is not kept. It would cost several times the encoder, which is kept and can start any
# training; the rest of a checkpoint serves only to finish its own training, or to continue from its end.
_KEPT = 2
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Checkpoints:
    """The checkpoints of one training. All ranks call the same methods in the same order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        # A separate group: the training communicates at the same time.
        self._group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None
        if rank() == 0:
            for leftover in directory.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
        """Write the checkpoint of `step`, with the JSON values `facts`, in the background; the tensors are copied at once.

        Raises DataError if the previous checkpoint could not be written.
        """
        self.finish()
        path = self._directory / f".step-{step:08d}"
        if rank() == 0:
            path.mkdir(parents=True)
        if self._group is not None:
            dist.barrier(self._group)
        tensors, _ = _tensors(method, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
            written = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        assert isinstance(written, Future)
        self._writing = self._thread.submit(self._complete, path, written, {"step": step, **facts})

    def finish(self) -> None:
        """Wait until the checkpoint in progress is complete, on all ranks. Raises DataError if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            if self._group is not None:
                dist.barrier(self._group)

    def _complete(self, path: Path, written: Future[Any], facts: dict[str, Any]) -> None:
        """Wait for all ranks, make the checkpoint visible, and delete all but the newest two."""
        try:
            written.result()
            if rank() == 0:
                for file in path.glob("*.safetensors"):
                    _sort_header(file)
                write_atomic(path / STATE, json.dumps(facts) + "\n")
                path.rename(path.with_name(path.name[1:]))
                for old in complete_checkpoints(self._directory)[:-_KEPT]:
                    shutil.rmtree(old)
        except (OSError, CheckpointException) as error:
            cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            raise DataError(
                f"The checkpoint of step {facts['step']:,} could not be written to {self._directory}: {cause}. Earlier "
                "checkpoints are complete. Make room there and run the same command again."
            ) from error


def restore(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Read a checkpoint into `method` and `optimizer`, on all ranks; returns its facts. Runs no code from the file.

    Raises DataError if it cannot be read, KeyError if it was made by another method or encoder.
    """
    tensors, optimizer_state = _tensors(method, optimizer)
    try:
        facts: dict[str, Any] = json.loads((path / STATE).read_text())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = HuggingFaceStorageReader(str(path))
            stored = reader.read_metadata().state_dict_metadata
            unfit = [
                name
                for name, tensor in tensors.items()
                if name not in stored or tuple(stored[name].size) != tuple(tensor.shape)  # type: ignore[union-attr]
            ]
            if unfit:
                raise KeyError(f"no fitting {', '.join(unfit[:3])} in {path}")
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except KeyError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise DataError(
            f"The checkpoint {path} cannot be read: {error} Delete it to continue from the one before it."
        ) from error
    if optimizer is not None:
        set_optimizer_state_dict(method, optimizer, optimizer_state, options=_FLAT)
    return facts


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint in `directory`; 0 without one. No kill leads back to before it."""
    path = newest_checkpoint(directory)
    return int(path.name.removeprefix("step-")) if path else 0


def _tensors(method: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors to save, by name, and the optimizer's state dict, whose tensors are among them."""
    optimizer_state = {} if optimizer is None else get_optimizer_state_dict(method, optimizer, options=_FLAT)
    kept = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    kept |= {f"optimizer.{name}": value for name, value in optimizer_state.items() if isinstance(value, Tensor)}
    return dict(sorted(kept.items())), optimizer_state  # the optimizer's own order changes when it is read back


def _sort_header(path: Path) -> None:
    """Sort the header, so that equal tensors give equal bytes: the library writes its metadata in an order that varies."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(length)), sort_keys=True, separators=(",", ":")).encode()
        file.seek(8)
        file.write(header.ljust(length))
