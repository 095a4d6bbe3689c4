"""Training lists that the processes of a machine share: their columns as .npy files, written once and mapped read-only."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from trainers.data.samples import (
    REPEATS,
    SampleList,
    check_weights,
    list_columns,
    open_list,
    rows_per_epoch,
    shard_base,
)
from trainers.data.shared_arrays import map_arrays, write_once

_BATCH_ROWS = 2**17
_DTYPES = {"shard": "<i4", "offset": "<i8", "size": "<i8", "crc32": "<u4", "row_id": "<i8", "repeats": "<i4", "label": "<i8"}
_DESCRIPTION = "lists.json"


class TrainingList(NamedTuple):
    """A training list to read, alone or as part of a mixture."""

    path: Path
    """The Parquet file, with the columns that `SampleList.of` takes."""
    shard_directory: Path
    weight: float = 1.0
    """Share in a mixture."""


@dataclass
class _Part:
    """The description of one list that is written with the columns."""

    shards: list[str]
    """Relative to the folder of the shards."""
    rows: int
    per_epoch: int | None
    each_once: bool = True
    """Whether no row repeats or is left out."""


def map_lists(lists: Sequence[TrainingList], scratch: Path, label: str | None = None) -> SampleList:
    """Map a training list, or several as a mixture, with the pseudo-labels of the column `label` if it is given.

    Equal to `SampleList.read` and `SampleList.mix`, but the rows are in files that all processes of the machine map: the first
    process that asks for lists of this content writes them, batch by batch, to a directory in `scratch`. Its name has the name
    of the machine, so machines may share `scratch`. Raises DataError if a list cannot be read or the files cannot be written.
    """
    check_weights([one.weight for one in lists])
    directory = scratch / f"list-{platform.node()}-{_fingerprint(lists, label)}"
    write_once(directory, lambda temporary: _write(temporary, lists, label))
    columns = map_arrays(directory)
    descriptions = [_Part(**part) for part in json.loads((directory / _DESCRIPTION).read_text())]
    bases = [shard_base(one.shard_directory) for one in lists]
    shards = tuple(f"{base}/{name}" for base, part in zip(bases, descriptions, strict=True) for name in part.shards)
    ends = np.cumsum([part.rows for part in descriptions]).tolist()
    parts = [
        SampleList(
            shards=shards,
            shard=columns["shard"][end - part.rows : end],
            offset=columns["offset"][end - part.rows : end],
            size=columns["size"][end - part.rows : end],
            crc32=columns["crc32"][end - part.rows : end],
            row_id=columns["row_id"][end - part.rows : end],
            repeats=None if part.each_once else columns[REPEATS][end - part.rows : end],
            per_epoch=part.per_epoch,
            label=columns["label"][end - part.rows : end] if label else None,
            cache=directory / f"part-{number}",
        )
        for number, (part, end) in enumerate(zip(descriptions, ends, strict=True))
    ]
    if len(parts) == 1:
        return parts[0]
    return SampleList(
        shards=shards,
        shard=columns["shard"],
        offset=columns["offset"],
        size=columns["size"],
        crc32=columns["crc32"],
        row_id=columns["row_id"],
        repeats=columns.get(REPEATS),
        parts=tuple((part, one.weight) for part, one in zip(parts, lists, strict=True)),
        cache=directory,
    )


def _fingerprint(lists: Sequence[TrainingList], label: str | None) -> str:
    """A digest of the content of the lists and of the name of the label column."""
    digest = hashlib.blake2b(repr(label).encode(), digest_size=16)
    for one in lists:
        try:
            with one.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise DataError(f"{one.path} is no readable Parquet file: {error}") from error
    return digest.hexdigest()


def _write(directory: Path, lists: Sequence[TrainingList], label: str | None) -> None:
    """Write the columns of all lists one after another, and their description."""
    files = [open_list(one.path, label) for one in lists]
    num_rows = sum(file.metadata.num_rows for file in files)
    parts = [_Part([], file.metadata.num_rows, rows_per_epoch(file.schema_arrow)) for file in files]
    has_repeats = any(REPEATS in file.schema_arrow.names for file in files)
    names = [name for name in _DTYPES if (name != REPEATS or has_repeats) and (name != "label" or label)]
    with ExitStack() as stack:
        columns = {name: stack.enter_context(_column(directory, name, num_rows)) for name in names}
        first_shard = 0
        for path, file, part in zip((one.path for one in lists), files, parts, strict=True):
            numbers: dict[str, int] = {}
            for batch in _batches(path, file.iter_batches(_BATCH_ROWS, columns=list_columns(file.schema_arrow, label))):
                arrays = _arrays(batch, numbers, first_shard, label)
                part.each_once = part.each_once and bool((arrays[REPEATS] == 1).all())
                for name, column in columns.items():
                    column.write(np.ascontiguousarray(arrays[name], _DTYPES[name]).data)
            part.shards = list(numbers)
            first_shard += len(numbers)
    if has_repeats and all(part.each_once for part in parts):
        (directory / f"{REPEATS}.npy").unlink()
    (directory / _DESCRIPTION).write_text(json.dumps([vars(part) for part in parts]))


def _batches(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches. Raises DataError where the file is damaged."""
    try:
        yield from batches
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error


@contextmanager
def _column(directory: Path, name: str, num_rows: int) -> Iterator[BinaryIO]:
    """A .npy file to which the values of a column are appended."""
    with (directory / f"{name}.npy").open("wb") as file:
        header = {"descr": _DTYPES[name], "fortran_order": False, "shape": (num_rows,)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _arrays(batch: pa.RecordBatch, numbers: dict[str, int], first_shard: int, label: str | None) -> dict[str, np.ndarray]:
    """The columns of a batch as arrays; `numbers` maps the shards of the list to their numbers, and new ones are added."""
    shards = batch["shard"]
    if not pa.types.is_dictionary(shards.type):
        shards = shards.dictionary_encode()
    shard_numbers = [numbers.setdefault(name, len(numbers)) for name in shards.dictionary.to_pylist()]
    arrays = {name: batch[name].to_numpy() for name in ("offset", "size", "crc32", "row_id")}
    arrays["shard"] = first_shard + np.array(shard_numbers, np.int32)[shards.indices.to_numpy()]
    arrays[REPEATS] = batch[REPEATS].to_numpy() if REPEATS in batch.schema.names else np.ones(len(batch), np.int32)
    if label:
        arrays["label"] = batch[label].to_numpy()
    return arrays
