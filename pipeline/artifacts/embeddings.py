"""Embeddings: a feature vector for every sample of a pool, and of what is held out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from curation.base.files import atomic_path
from curation.embeddings.files import SUFFIXES, EmbeddingFiles
from pipeline.artifacts.artifact import Artifact, is_artifact, verified
from pipeline.artifacts.files import files_fingerprint
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.splits import POOL

_BLOCK_ROWS = 16384


@dataclass(frozen=True)
class Embeddings(Artifact):
    """One Arrow IPC part a shard, with columns row_id and embedding (D,) fp16; or files of the user's own.

    Of the user's own files all rows are the pool's.
    """

    kind = "embeddings"
    layout = 2

    @classmethod
    def open(cls, directory: Path) -> "Embeddings":
        """What `windrow embed` wrote into `directory`; or a file or a directory of the user's own."""
        return super().open(directory) if is_artifact(directory) else UserEmbeddings.open(directory)

    def files(self, split: str) -> list[Path]:
        """The files that hold one split."""
        return [self.directory / part.path for part in self.parts(".arrow") if part.split == split]

    def source(self, split: str = POOL, *, normalize: bool = False) -> EmbeddingFiles | None:
        """The embeddings of one split; None if it has none."""
        files = self.files(split)
        return EmbeddingFiles.open(files, normalize=normalize) if files else None

    def pool(self, *, normalize: bool = False) -> EmbeddingFiles:
        """The embeddings of the pool."""
        source = self.source(POOL, normalize=normalize)
        if source is None:
            raise DataError(f"{self.directory} has no embeddings of the pool.")
        return source

    def verify(self, worker: int, num_workers: int) -> None:
        """Compare one worker's share of the parts with their digests. Raises DataError if one differs."""
        for part in self.parts(".arrow")[worker::num_workers]:
            verified(self.directory, part)


@dataclass(frozen=True)
class UserEmbeddings(Embeddings):
    """Embeddings that the user brought: .npy, Arrow or Parquet files."""

    @classmethod
    def open(cls, directory: Path) -> "UserEmbeddings":
        fingerprint = files_fingerprint(directory, SUFFIXES)
        manifest = Manifest(
            kind=cls.kind, layout=cls.layout, version=0, fingerprint=fingerprint, settings={}, parents={}, ancestors={}
        )
        return cls(directory, manifest)

    def files(self, split: str) -> list[Path]:
        return [self.directory] if split == POOL else []


def write_part(out: Path, name: str, row_ids: np.ndarray, embeddings: np.ndarray, split: str) -> Part:
    """Write embeddings (N, D) fp16 of samples of one split with ascending `row_ids` (N,) as one part."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    table = pa.table({"row_id": row_ids, "embedding": column})
    with atomic_path(out / name) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=_BLOCK_ROWS)
    return Part.describe(out, name, len(row_ids), split=split, row_ids=(int(row_ids[0]), int(row_ids[-1])))
