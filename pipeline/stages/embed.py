"""embed: one feature vector for every sample, by a frozen encoder."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curation.base import rng
from curation.base.errors import DataError
from curation.base.files import atomic_path
from curation.embeddings.files import EmbeddingFiles
from pipeline.artifacts.manifest import Manifest, Part, by_content, is_artifact, read_kind
from pipeline.config import EmbedConfig
from pipeline.sources.folder import POOL
from pipeline.stages.shard import INDEX, read_index
from pipeline.stages.stage import Made, Work
from trainers.config import PixelsConfig
from trainers.data.samples import PLACE, SampleList
from trainers.engine.layout import DESCRIPTION, WEIGHTS

if TYPE_CHECKING:
    from trainers.models.encoders import Encoder

_FIT_ROWS = 4096
_BLOCK_ROWS = 16384


@dataclass(frozen=True)
class Embed:
    """One Arrow IPC part a shard, named after it, with columns row_id and embedding (fp16), in the order of the index.

    With an input named "encoder" that one is used; otherwise `config.encoder` is built, and kept with the embeddings.
    """

    config: EmbedConfig
    seed: int
    has_encoder: bool
    kind = "embeddings"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed} if self.has_encoder else {"seed": self.seed, **by_content(self.config.fingerprint_fields())}

    def make(self, work: Work) -> Made:
        samples = work.inputs["samples"]
        read_kind(samples, "samples")
        encoder_directory = work.inputs.get("encoder", work.out)
        parts = []
        if not self.has_encoder:
            if not (work.out / DESCRIPTION).exists():  # written last of the two
                work.runtime.call(build_and_save, samples, self.config, self.seed, work.out, gpu=False)
            parts = [Part.of(work.out, name, 0) for name in (WEIGHTS, DESCRIPTION)]
        shards = [part for part in Manifest.read(samples).parts if part.path.endswith(".tar")]
        embeddings = work.parts(
            embed_part,
            [shard.num_rows for shard in shards],
            [shard.path for shard in shards],
            samples,
            encoder_directory,
            work.out,
            self.config.batch_size,
            label="embed",
            gpu=True,
        )
        pool = EmbeddingFiles.open([work.out / part.path for part in embeddings if part.path.startswith(POOL)])
        held_out = sum(part.num_rows for part in embeddings) - pool.num_rows
        return Made([*embeddings, *parts], {"rows": pool.num_rows, "held_out": held_out, "dim": pool.dim})


def build_and_save(samples: Path, config: EmbedConfig, seed: int, out: Path) -> None:
    """Build the first round's encoder; pixel components are fitted to a random sample of the pool."""
    import torch

    from trainers.evaluation.embed import squares
    from trainers.models.encoders import build_encoder

    images = np.empty((0, 3, 0, 0), dtype=np.uint8)
    if isinstance(config.encoder, PixelsConfig):
        pool = sample_list(samples, POOL)
        rows = rng.permute(rng.key(seed, "fit"), np.arange(min(_FIT_ROWS, len(pool))), len(pool))
        images = squares(pool, np.sort(rows), config.encoder.image_size)
    with torch.random.fork_rng(devices=[]):  # weights that are not pretrained are random, by the seed
        torch.manual_seed(rng.key(seed, "weights") >> 1)
        build_encoder(config.encoder, images).save(out)


def sample_list(samples: Path, split: str) -> SampleList:
    """All samples of one split, ready to read."""
    return SampleList.of(read_index(samples, split, PLACE), samples)


@lru_cache(maxsize=1)
def _encoder(directory: Path, _modified: int) -> "Encoder":
    from trainers.models.encoders import Encoder

    return Encoder.load(directory)


def embed_part(index: int, shards: list[str], samples: Path, encoder_directory: Path, out: Path, batch_size: int) -> Part:
    """Embed one shard."""
    from curation.distance.nearest import default_device
    from trainers.evaluation.embed import embed

    encoder = _encoder(encoder_directory, (encoder_directory / WEIGHTS).stat().st_mtime_ns)
    here = SampleList.read(samples / INDEX / shards[index].replace(".tar", ".parquet"), samples)
    features = embed(encoder, here, np.arange(len(here)), batch_size=batch_size, device=default_device())
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(
            f"The encoder in {encoder_directory} gives features outside the range of fp16 (largest magnitude "
            f"{np.abs(features).max():.3g}). Its training diverged: train it again with a lower train.learning_rate."
        )
    name = shards[index].replace(".tar", ".arrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(half.ravel()), half.shape[1])
    table = pa.table({"row_id": here.row_id, "embedding": column})
    with atomic_path(out / name) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=_BLOCK_ROWS)
    return Part.of(out, name, len(here))


def open_embeddings(directory: Path, *, normalize: bool = False) -> EmbeddingFiles:
    """The embeddings of the pool in a finished artifact, or files of the user's own."""
    return EmbeddingFiles.open(embedding_files(directory, POOL) or directory, normalize=normalize)


def embedding_files(directory: Path, split: str) -> list[Path]:
    """The files of a finished artifact that hold one split; none if these are files of the user's own."""
    if not is_artifact(directory):
        return []
    parts = read_kind(directory, "embeddings").parts
    return [directory / part.path for part in parts if part.path.startswith(split) and part.path.endswith(".arrow")]


def read_scores(path: Path, num_rows: int) -> np.ndarray:
    """(N,) numbers of the user's own, one for each of `num_rows` rows, from a .npy file."""
    try:
        scores = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as scores: {error}. Expected a .npy array of one number a row.") from error
    if scores.shape != (num_rows,) or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise DataError(f"{path} must hold {num_rows:,} finite numbers; found {scores.dtype} of shape {scores.shape}.")
    return scores
