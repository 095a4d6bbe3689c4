import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from curation.base.errors import DataError
from trainers.data.decoding import decode_window
from trainers.data.jpeg import layout, region

KINDS = {"4:4:4": (8, 8), "4:2:2": (8, 16), "4:2:0": (16, 16), "gray": (8, 8), "gray, said to be of two by two": (8, 8)}
"""Height and width of an MCU."""


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 85, **options}
    if kind not in ("4:4:4", "4:2:2", "4:2:0"):
        Image.fromarray(pixels).convert("L").save(buffer, "JPEG", **options)
        return buffer.getvalue() if kind == "gray" else buffer.getvalue().replace(b"\1\1\x11\0", b"\1\1\x22\0", 1)
    Image.fromarray(pixels).save(buffer, "JPEG", subsampling=kind, **options)
    return buffer.getvalue()


@st.composite
def wanted(draw: st.DrawFn) -> tuple[str, tuple[int, int], int, tuple[int, int, int, int]]:
    """A kind of JPEG, its sides, the intervals of its rows, and a box in it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    columns = -(-width // KINDS[kind][1])
    intervals = draw(st.sampled_from([n for n in range(1, columns + 1) if columns % n == 0]))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return kind, (height, width), intervals, (top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))


@example(("4:2:2", (1, 17), 2, (0, 0, 1, 5)), 4)
@example(("4:2:0", (64, 20), 2, (0, 19, 9, 1)), 1)
@given(wanted(), st.sampled_from([1, 2, 4, 8]))
def test_a_window_has_the_pixels_of_the_whole_image(
    case: tuple[str, tuple[int, int], int, tuple[int, int, int, int]], reduction: int
) -> None:
    kind, (height, width), intervals, box = case
    columns = -(-width // KINDS[kind][1])
    pixels = noise(height, width)
    content = encode(pixels, kind, restart_marker_blocks=columns // intervals)
    whole = decode_window(encode(pixels, kind), box, reduction)
    assert (whole.top, whole.left) == (0, 0)
    assert whole.pixels.shape == (-(-height // reduction), -(-width // reduction), 3)
    expected = whole.pixels.copy()
    found = decode_window(content, box, reduction)
    top, left, bottom, right = box[0], box[1], box[0] + box[2], box[1] + box[3]
    rows, columns = slice(top // reduction, -(-bottom // reduction)), slice(left // reduction, -(-right // reduction))
    here = found.pixels[rows.start - found.top : rows.stop - found.top, columns.start - found.left : columns.stop - found.left]
    assert np.array_equal(here, expected[rows, columns])


@pytest.mark.parametrize("kind", [kind for kind, mcu in KINDS.items() if mcu == (8, 8)])
def test_no_more_is_decoded_than_the_intervals_that_have_the_box(kind: str) -> None:
    content = encode(noise(160, 320), kind, restart_marker_blocks=5)
    found = decode_window(content, (54, 130, 14, 40), 1)
    assert (found.top, found.left, *found.pixels.shape) == (48, 120, 24, 80, 3)
    assert len(region(content, (54, 130, 14, 40))[0]) < 0.1 * len(content)
    found = decode_window(content, (54, 130, 14, 40), 2)
    assert (found.top, found.left, *found.pixels.shape) == (20, 60, 20, 40, 3)


MARKED = encode(noise(64, 64), "4:4:4", restart_marker_blocks=2)


@pytest.mark.parametrize(
    "content",
    [
        encode(noise(64, 64), "4:4:4"),
        encode(noise(64, 64), "4:4:4", progressive=True, restart_marker_blocks=2),
        encode(noise(64, 64), "4:4:4", restart_marker_blocks=3),
        encode(noise(64, 64), "4:4:4", restart_marker_blocks=16),
        MARKED[:-2],
        MARKED.replace(b"\xff\xd3", b"\xff\x00", 1),
        MARKED.replace(b"\xff\x00", b"\xff\xd3", 1),
        MARKED.replace(b"\xff\xd3", b"\xff\xc0", 1),
    ],
    ids=["no markers", "progressive", "across rows", "of rows", "cut off", "one lost", "one too many", "another"],
)
def test_what_has_no_parts_is_taken_whole(content: bytes) -> None:
    assert region(content, (0, 0, 8, 8)) is None


def test_most_of_an_image_is_taken_whole() -> None:
    assert region(encode(noise(64, 64), "4:4:4", restart_marker_blocks=1), (1, 1, 60, 60)) is None


@given(st.data())
def test_damaged_files_give_a_window_or_a_reason(data: st.DataObject) -> None:
    content = bytearray(encode(noise(70, 60), "4:2:0", restart_marker_blocks=1))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(2, len(content)))])
    layout(damaged)
    try:
        found = decode_window(damaged, (20, 10, 30, 20), 1)
    except DataError:
        return
    assert found.pixels.ndim == 3
