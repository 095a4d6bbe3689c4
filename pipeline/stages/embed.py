"""embed: one feature vector for every sample, by a frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from pipeline.artifacts.embeddings import Embeddings, write_part
from pipeline.artifacts.encoders import weights_by_content
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples, index_name
from pipeline.artifacts.training import FrozenEncoder
from pipeline.splits import POOL
from pipeline.stages.config import EmbedConfig
from pipeline.stages.costs import encoder_cost
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput
from trainers.data.samples import SampleList
from trainers.models.config import EncoderConfig, PixelsConfig
from trainers.output_files import DESCRIPTION, WEIGHTS

if TYPE_CHECKING:
    from trainers.models.encoders import Encoder

_FIT_ROWS = 4096


@dataclass(frozen=True)
class Embed(Stage):
    """One part a shard, named after it.

    With the input "encoder" that one is used; otherwise the configured encoder is built, and kept with the embeddings.
    """

    config: EmbedConfig
    seed: int
    trained: EncoderConfig | None = None
    """The settings of the input "encoder", where there is one: for the estimate."""
    has_encoder: bool = False
    name = "embed"
    makes = Embeddings
    inputs: ClassVar[Mapping[str, Input]] = {"samples": Input(Samples), "encoder": Input(FrozenEncoder, optional=True)}

    def settings(self) -> dict[str, Any]:
        if self.has_encoder:
            return {"seed": self.seed}
        return {"seed": self.seed, **weights_by_content(self.config.fingerprint_fields(), self.config.encoder)}

    def make(self, context: StageContext) -> StageOutput:
        samples: Samples = context.inputs["samples"]
        encoder_directory, encoder_parts = context.directory("encoder"), []
        if encoder_directory is None:
            encoder_directory = context.out
            if not (context.out / DESCRIPTION).exists():  # written last of the two
                context.call(build_and_save, samples.directory, self.config, self.seed, context.out)
            encoder_parts = [Part.describe(context.out, name, 0) for name in (WEIGHTS, DESCRIPTION)]
        shards = samples.shards()
        parts = context.parts(
            embed_part,
            [(shard.path.removesuffix(".tar"), shard.split) for shard in shards],
            samples.directory,
            encoder_directory,
            context.out,
            self.config.batch_size,
            num_rows=[shard.num_rows for shard in shards],
            label="embed",
            on_gpu=True,
        )
        embeddings = Embeddings(context.out, Manifest.model_construct(parts=tuple(parts)))
        rows = sum(part.num_rows for part in parts if part.split == POOL)
        others = sum(part.num_rows for part in parts) - rows
        statistics = {"rows": rows, "others": others, "dim": embeddings.pool().dim}
        return StageOutput([*parts, *encoder_parts], statistics)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        samples = inputs["samples"]
        flops, dim = encoder_cost(self.trained or self.config.encoder)
        num = samples.rows + samples.held_out
        return Estimate(
            samples.rows,
            samples.held_out,
            dim,
            parts=samples.parts // 2,
            num_bytes=num * (2 * dim + 8),
            flops=num * flops,
            decodes=num,
        )

    def describe(self, manifest: Manifest) -> str:
        return f"{manifest.statistics['rows']:,} \u00d7 {manifest.statistics['dim']:,} features"


def build_and_save(samples: Path, config: EmbedConfig, seed: int, out: Path) -> None:
    """Build the first round's encoder; pixel components are fitted to a random sample of the pool."""
    import torch

    from trainers.evaluation.embed import squares
    from trainers.models.encoders import build_encoder

    images = np.empty((0, 3, 0, 0), dtype=np.uint8)
    if isinstance(config.encoder, PixelsConfig):
        pool = Samples.open(samples).sample_list(POOL)
        rows = rng.permute(rng.key(seed, "fit"), np.arange(min(_FIT_ROWS, len(pool))), len(pool))
        images = squares(pool, np.sort(rows), config.encoder.image_size)
    with torch.random.fork_rng(devices=[]):  # weights that are not pretrained are random, by the seed
        torch.manual_seed(rng.key(seed, "weights") >> 1)
        build_encoder(config.encoder, images).save(out)


@lru_cache(maxsize=1)
def _encoder(directory: Path, _modified: int) -> "Encoder":
    from trainers.models.encoders import Encoder

    return Encoder.load(directory)


def embed_part(shard: str, split: str, samples: Path, encoder_directory: Path, out: Path, batch_size: int) -> list[Part]:
    """Embed one shard."""
    from curation.base.device import default_device
    from trainers.evaluation.embed import embed

    encoder = _encoder(encoder_directory, (encoder_directory / WEIGHTS).stat().st_mtime_ns)
    listed = SampleList.read(samples / index_name(shard), samples)
    features = embed(encoder, listed, np.arange(len(listed)), batch_size=batch_size, device=default_device())
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(
            f"The encoder in {encoder_directory} gives features outside the range of fp16 (largest magnitude "
            f"{np.abs(features).max():.3g}). Its training diverged: train it again with a lower train.learning_rate."
        )
    return [write_part(out, f"{shard}.arrow", listed.row_id, half, split)]
