"""Images: JPEG, PNG and what else a decoder knows, as RGB pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from pipeline.modalities.modality import SIGNATURE, Pairs, Probe
from pipeline.sources.source import Problem
from trainers.data.decoding import SUFFIXES, decode, is_jpeg

__all__ = ["SUFFIXES", "Images"]
_FLAT = 2.0
"""Standard deviation of grey values, of 255, below which an image shows nothing."""
_HASH_SIDE = 32


@dataclass(frozen=True)
class Images:
    """Images whose shorter side has at least `min_side` pixels. Signatures are perceptual hashes of 64 bits."""

    min_side: int = 1
    columns: ClassVar[pa.Schema] = pa.schema({"width": pa.int32(), "height": pa.int32(), SIGNATURE: pa.uint64()})

    def probe(self, content: bytes) -> Probe:
        """As `Modality.probe`."""
        try:
            image = decode(content)
        except DataError as error:
            reason, _, detail = str(error).partition(": ")
            return Probe(problem=Problem(reason, detail))
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            return Probe(problem=Problem("too small", f"{width} x {height} pixels"))
        return Probe({"width": width, "height": height, SIGNATURE: _signature(image)})

    def stored(self, content: bytes) -> bytes:
        """As `Modality.stored`: JPEGs with restart markers, which change no pixel; others as they are."""
        if not is_jpeg(content):
            return content
        from trainers.data.restart_markers import with_restarts  # what it imports compiles for a second

        return with_restarts(content)

    def near_signatures(self, signatures: np.ndarray, max_distance: int) -> Iterator[Pairs]:
        """As `Modality.near_signatures`; distances are in bits."""
        from curation.dedup.hashing import near_hashes

        return near_hashes(signatures, max_distance)

    def detail(self, columns: pa.Table) -> np.ndarray:
        """As `Modality.detail`: pixels."""
        return columns["width"].to_numpy().astype(np.int64) * columns["height"].to_numpy()

    def picture(self, content: bytes) -> np.ndarray | None:
        """As `Modality.picture`."""
        try:
            return decode(content)
        except DataError:
            return None


def _signature(image: np.ndarray) -> int | None:
    """The perceptual hash of (H, W, 3) uint8; None if there is nothing to be seen, for all such images would be alike."""
    from PIL import Image

    from curation.dedup.hashing import perceptual_hash

    small = Image.fromarray(image).resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR)
    gray = np.asarray(small, dtype=np.float64).mean(2)
    return int(perceptual_hash(gray[None])[0]) if gray.std() > _FLAT else None
