"""The quickstart's raw heap: scikit-learn's handwritten digits as a folder of files, the way heaps are."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.manifest import Part
from pipeline.config import DigitsConfig
from pipeline.sources.folder import long_tail_counts
from pipeline.stages.stage import Made, Work

FOLDER = "files"
_SIDE = 32
# What is frequent varies least, as in heaps from the world: a 0 is a 0, but a 2 may be written in many ways.
_BY_FREQUENCY = np.array([0, 6, 7, 9, 4, 5, 1, 3, 8, 2])


@dataclass(frozen=True)
class WriteDigits:
    """Write the digits as PNG files under `files/train/<digit>` and `files/test/<digit>`.

    Every fifth image is for testing. The training classes are thinned to a long tail; then some files are copied, cut
    short, emptied or shrunk.
    """

    config: DigitsConfig
    kind = "raw images"

    def settings(self) -> dict[str, Any]:
        return self.config.fingerprint_fields()

    def make(self, work: Work) -> Made:
        from sklearn.datasets import load_digits

        root = work.out / FOLDER
        shutil.rmtree(root, ignore_errors=True)
        digits = load_digits()
        is_test = _held_out(len(digits.target))
        keep = np.zeros(10, dtype=np.int64)
        keep[_BY_FREQUENCY] = pool_counts(self.config)
        written: list[str] = []

        def write(path: str, content: bytes) -> None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            written.append(path)

        seen = np.zeros(10, dtype=np.int64)
        for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            if is_test[index]:
                write(f"test/{digit}/{index:04d}.png", _png(image, _SIDE))
            elif seen[digit] < keep[digit]:
                content = _png(image, _SIDE)
                write(f"train/{digit}/{index:04d}.png", content)
                if seen[digit] % 10 == 3:
                    write(f"train/{digit}/{index:04d}.copy.png", content)
                if seen[digit] % 40 == 7:
                    write(f"train/{digit}/{index:04d}.part.png", content[: len(content) // 2])
                if seen[digit] % 60 == 11:
                    write(f"train/{digit}/{index:04d}.empty.png", b"")
                if seen[digit] % 60 == 23:
                    write(f"train/{digit}/{index:04d}.thumbnail.png", _png(image, 8))
                seen[digit] += 1
        parts = [Part.of(work.out, f"{FOLDER}/{path}", 1) for path in written]
        return Made(parts, {"files": len(written)})


def _held_out(num: int) -> np.ndarray:
    """Which of the digits are for testing: every fifth."""
    return np.arange(num) % 5 == 4


def pool_counts(config: DigitsConfig) -> np.ndarray:
    """(10,) int64: images of the pool for each digit, the most frequent first."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    return long_tail_counts(np.bincount(labels[~_held_out(len(labels))])[_BY_FREQUENCY], config.long_tail)


def held_out_count() -> int:
    """Images of the held-out split."""
    from sklearn.datasets import load_digits

    return int(_held_out(len(load_digits().target)).sum())


def _png(image: np.ndarray, side: int) -> bytes:
    """An 8 x 8 array with values 0 to 16 as black ink on white."""
    from PIL import Image

    paper = Image.fromarray((255 - image * 255 / 16).astype(np.uint8))
    buffer = io.BytesIO()
    paper.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def folder(directory: Path) -> Path:
    """Where the files of a finished artifact are."""
    return directory / FOLDER
