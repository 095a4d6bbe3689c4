import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curation.base.errors import DataError
from trainers.data import restart_markers as restarts
from trainers.data.decoding import decode
from trainers.data.jpeg import layout, segment
from trainers.data.restart_markers import _STANDARD, _with_all_categories, with_restarts

COLUMNS = {"4:4:4": 8, "4:2:2": 16, "4:2:0": 16, "gray": 8}
"""Pixels across an MCU."""


@pytest.fixture(autouse=True, scope="module")
def small_images_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restarts, "_MIN_BYTES", 1)
        yield


def encode(height: int, width: int, kind: str = "4:2:0", *, smooth: bool = False, **options: object) -> bytes:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if smooth:
        image = image.resize((2, 2)).resize((width, height), Image.Resampling.BICUBIC)
    if kind == "gray":
        image = image.convert("L")
    else:
        options["subsampling"] = kind
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def of_two_images() -> bytes:
    first, second = (Image.open(io.BytesIO(encode(64, 64, quality=quality))) for quality in (90, 50))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def for_print() -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encode(64, 64))).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def coded_data(content: bytes) -> bytes:
    found = layout(content)
    assert found is not None
    return content[found.data :]


@given(
    st.integers(1, 130), st.integers(1, 130), st.sampled_from(sorted(COLUMNS)), st.integers(0, 9), st.sampled_from([30, 90, 99])
)
def test_intervals_are_coded_as_libjpeg_codes_them(height: int, width: int, kind: str, old: int, quality: int) -> None:
    marked = with_restarts(encode(height, width, kind, quality=quality, restart_marker_blocks=old))
    columns = -(-width // COLUMNS[kind])
    interval = columns // max(n for n in range(1, 9) if columns % n == 0)
    found = layout(marked)
    assert found is not None
    assert found.interval == interval
    assert coded_data(marked) == coded_data(encode(height, width, kind, quality=quality, restart_marker_blocks=interval))


@given(st.integers(1, 130), st.integers(1, 130), st.sampled_from(sorted(COLUMNS)), st.booleans())
def test_no_pixel_changes_where_files_have_tables_of_their_own(height: int, width: int, kind: str, smooth: bool) -> None:
    content = encode(height, width, kind, optimize=True, smooth=smooth)
    marked = with_restarts(content)
    assert np.array_equal(decode(marked), decode(content))
    assert with_restarts(marked) == marked
    found = layout(marked)
    assert found is not None
    assert found.interval


def test_codes_stay_where_they_are_and_others_are_added() -> None:
    content = encode(200, 200, "gray", optimize=True, smooth=True)
    old, new = layout(content), layout(with_restarts(content))
    assert old is not None
    assert new is not None
    table, longer = old.tables[0], new.tables[0]
    assert len(table) < 16 + 12
    assert longer[16:].startswith(table[16:])
    assert sorted(longer[16:]) == list(range(12))
    # Kraft's sum, less than 1 for the code of nothing but ones.
    assert sum(count / 2**length for length, count in enumerate(longer[:16], 1)) < 1
    full = bytes([2, *[0] * 15, 3, 4])  # leaves no code to others
    assert _with_all_categories(full) == _STANDARD
    assert _with_all_categories(bytes([*[0] * 15, 250]) + bytes(250)) == _STANDARD
    assert _with_all_categories(_STANDARD) == _STANDARD


def test_the_rest_of_the_file_stays() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a hay field"
    content = encode(50, 70, exif=exif, comment=b"mown", quality=70) + b"an appendix \xff\xd9"
    marked = with_restarts(content)
    assert marked != content
    assert marked.endswith(b"\xff\xd9an appendix \xff\xd9")
    found = Image.open(io.BytesIO(marked))
    assert found.getexif()[0x010E] == "a hay field"
    assert found.info["comment"] == b"mown"


@pytest.mark.parametrize(
    "content",
    [
        encode(64, 64, progressive=True),
        encode(64, 64)[:-2],
        encode(64, 64).replace(b"\xff\xd9", b"\xff\xc5"),
        encode(64, 64)[:-20] + b"\xff\xd9",
        encode(64, 64).replace(b"\xff\xd9", b"\x00\x00\xff\xd9"),
        encode(64, 64, restart_marker_blocks=2).replace(b"\xff\xd1", b"\xff\xc1"),
        encode(64, 64, restart_marker_blocks=2).replace(b"\xff\xd1", b"\xff\xd2"),
        of_two_images(),
        for_print(),
        encode(64, 64)[: layout(encode(64, 64)).data - 1],
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + segment(0xC0, bytes([8, 0, 1, 0, 1, 0])) + segment(0xDA, bytes(4)),
    ],
    ids=[
        "progressive",
        "no end",
        "another end",
        "cut off",
        "too long",
        "a strange marker",
        "out of turn",
        "two images",
        "for print",
        "no data",
        "nothing",
        "empty",
        "no components",
    ],
)
def test_what_is_no_sequential_jpeg_stays(content: bytes) -> None:
    assert with_restarts(content) == content


def test_coefficients_too_large_for_a_code_stay_as_they_are() -> None:
    """Sixty-four blocks, each brighter than the last by the most that can be coded, and with nothing else in it."""
    content = encode(64, 64, "gray")
    bits = ("111111110" + 11 * "1" + "1010") * 64  # T.81, tables K.3 and K.5
    coded = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    content = content[: layout(content).data] + coded + b"\xff\xd9"
    decode(content)
    assert with_restarts(content) == content


def test_a_file_that_has_few_bytes_for_an_interval_gets_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_MIN_BYTES", 128)
    flat, rough, fine = (
        encode(256, 256, "4:4:4", smooth=smooth, quality=q) for smooth, q in ((True, 5), (False, 5), (False, 90))
    )
    assert with_restarts(flat) == flat
    intervals = []
    for content in (rough, fine):
        marked = with_restarts(content)
        assert len(marked) < 1.06 * len(content)
        intervals.append(layout(marked).interval)
    assert intervals == [32, 32 // 8]


@given(st.data())
def test_damaged_files_keep_their_pixels_if_they_have_any(data: st.DataObject) -> None:
    content = bytearray(encode(40, 50, optimize=True, restart_marker_blocks=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(2, len(content)))])
    marked = with_restarts(damaged)
    try:
        expected = decode(damaged)
    except DataError:
        return
    assert np.array_equal(decode(marked), expected)
