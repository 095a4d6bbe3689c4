"""The demo: scikit-learn's handwritten digits as a long-tailed heap with broken and duplicate files: `type: digits`."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.sources.config import DigitsConfig
from pipeline.sources.long_tail import long_tail_counts
from pipeline.sources.source import Record
from pipeline.splits import HELD_OUT, POOL

_SIDE = 32
# What is frequent varies least, as in heaps from the world: a 0 is a 0, but a 2 may be written in many ways.
_BY_FREQUENCY = np.array([0, 6, 7, 9, 4, 5, 1, 3, 8, 2])
_TYPICAL_BYTES = 700
_NUM_HELD_OUT, _NUM_TRAINING = 359, np.array([151, 161, 143, 131, 147, 154, 150, 136, 127, 138])
"""Images for testing, and the others of each digit: what scikit-learn has is fixed, and loading it takes a second."""


@dataclass(frozen=True)
class Digits:
    """PNG files under `train/<digit>` and `test/<digit>`, made when they are asked for.

    Every fifth image is for testing. The training classes are thinned to a long tail; then some files are copied, cut
    short, emptied or shrunk.
    """

    config: DigitsConfig
    modality: ClassVar[str] = "image"
    long_tail: float = 1

    def partitions(self) -> list[str]:
        """As `Source.partitions`: one."""
        return ["digits"]

    def records(self, partition: str, scratch: Path) -> Iterator[Record]:  # noqa: ARG002
        """As `Source.records`: the bytes themselves."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        is_test = _held_out(len(digits.target))
        num_wanted = np.zeros(10, dtype=np.int64)
        num_wanted[_BY_FREQUENCY] = self._pool_counts()
        num_made = np.zeros(10, dtype=np.int64)
        for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            if is_test[index]:
                yield _record(HELD_OUT, digit, f"{index:04d}", _png(image, _SIDE))
            elif num_made[digit] < num_wanted[digit]:
                content, number = _png(image, _SIDE), num_made[digit]
                yield _record(POOL, digit, f"{index:04d}", content)
                if number % 10 == 3:
                    yield _record(POOL, digit, f"{index:04d}.copy", content)
                if number % 40 == 7:
                    yield _record(POOL, digit, f"{index:04d}.part", content[: len(content) // 2])
                if number % 60 == 11:
                    yield _record(POOL, digit, f"{index:04d}.empty", b"")
                if number % 60 == 23:
                    yield _record(POOL, digit, f"{index:04d}.thumbnail", _png(image, 8))
                num_made[digit] += 1

    def describe_empty(self) -> str:
        """As `Source.describe_empty`."""
        return "Scikit-learn has no digits. Install it again."

    def size(self) -> tuple[int, int, int]:
        """As `Source.size`."""
        pool = int(self._pool_counts().sum())
        return pool, _NUM_HELD_OUT, _TYPICAL_BYTES * (pool + _NUM_HELD_OUT)

    def _pool_counts(self) -> np.ndarray:
        """(10,) int64: images of the pool for each digit, the most frequent first."""
        return long_tail_counts(_NUM_TRAINING[_BY_FREQUENCY], self.config.long_tail)


def _record(split: str, digit: int, name: str, content: bytes) -> Record:
    return Record(f"{split}/{digit}/{name}.png", {".png": content}, split, str(digit))


def _held_out(num: int) -> np.ndarray:
    """(N,) bool: the digits that are for testing."""
    return np.arange(num) % 5 == 4


def _png(image: np.ndarray, side: int) -> bytes:
    """An 8 x 8 array with values 0 to 16 as black ink on white."""
    from PIL import Image

    paper = Image.fromarray((255 - image * 255 / 16).astype(np.uint8))
    buffer = io.BytesIO()
    paper.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
