"""TensorBoard event files, made from the lines that a training writes, which remain the only record."""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

from curation.base.errors import ConfigError
from curation.base.files import explained
from trainers.output_files import EVALUATIONS, METRICS

EVENTS = "tensorboard"
_TAGS = {METRICS: "train", EVALUATIONS: "evaluation"}


class TensorBoard:
    """The event files of one training, in `tensorboard` in its directory; `update` adds the new lines.

    Events cannot be deleted, but lines can, for example after a kill. So the events are written anew at the start, and when a
    file of lines is replaced: 0.1 ms a line, while the ranks keep training. Raises ConfigError if the package is missing.
    """

    def __init__(self, directory: Path) -> None:
        require_package()
        self._directory = directory
        self._file: io.BufferedWriter | None = None
        self._read: dict[str, tuple[int, int]] = {}
        """Inode of each file of lines, and the number of its bytes that are written as events."""

    def update(self) -> None:
        """Write the lines that were added since the last call."""
        paths = {name: self._directory / name for name in _TAGS}
        inodes = {name: path.stat().st_ino for name, path in paths.items() if path.exists()}
        with explained("The events for TensorBoard", self._directory):
            if self._file is None or any(inodes.get(name) != inode for name, (inode, _) in self._read.items()):
                self._begin()
            assert self._file is not None
            for name, inode in inodes.items():
                done = self._read.get(name, (inode, 0))[1]
                with paths[name].open("rb") as file:
                    file.seek(done)
                    text, newline, _ = file.read().rpartition(b"\n")
                for line in text.splitlines():
                    self._write(_TAGS[name], json.loads(line))
                self._read[name] = inode, done + len(text) + len(newline)
            self._file.flush()

    def _begin(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self._directory / EVENTS
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._read = {}
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.6f}.windrow").open("wb")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def _write(self, prefix: str, row: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        values = [Summary.Value(tag=f"{prefix}/{key}", simple_value=value) for key, value in numbers.items()]
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        self._records.write(event.SerializeToString())


def require_package() -> None:
    """Raise ConfigError if TensorBoard is not installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"train.tensorboard needs a package that is missing ({error}): pip install 'windrow[tensorboard]', or set "
            "train.tensorboard=false."
        ) from error
