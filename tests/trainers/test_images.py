import io

import numpy as np
import pytest
from PIL import Image

from curation.errors import DataError
from trainers import images


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    assert np.array_equal(images.decode(encode(PIXELS, kind)), PIXELS)


def test_jpeg_decodes_as_pillow_does() -> None:
    content = encode(PIXELS, "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert np.abs(images.decode(content) - expected).max() <= 2


@pytest.mark.parametrize("room", [2**20, 10])
def test_an_image_that_need_not_last_is_the_same(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(images._room, "pixels", np.full(room, 7, dtype=np.uint8))
    contents = [encode(PIXELS, "JPEG"), encode(PIXELS[:7, :9], "JPEG"), encode(PIXELS[:, ::-1], "PNG")]
    lasting = [images.decode(content) for content in contents]
    for content, expected in zip(contents, lasting, strict=True):
        assert np.array_equal(images.decode(content, lasting=False), expected)
    assert np.array_equal(images.decode(contents[0], 2, lasting=False), images.decode(contents[0], 2))


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"subsampling": "4:2:2", "restart_marker_rows": 1}]
)
def test_the_rows_that_are_wanted_are_those_of_the_whole_image(options: dict[str, object], reduction: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (133, 40, 3)).astype(np.uint8)
    content = encode(pixels, "JPEG", **options)
    whole = images.decode(content, reduction)
    for rows in (1, 31, 64, 65, 100, 101, 133):
        found = images.decode(content, reduction, rows=rows)
        sure = -(-rows // reduction) + 1
        assert np.array_equal(found[:sure], whole[:sure])
        assert len(found) <= -(-(rows + 2 * reduction + 16) // reduction)
    for other in (encode(pixels, "JPEG", progressive=True), encode(pixels, "PNG")):
        assert np.array_equal(images.decode(other, reduction, rows=10), images.decode(other, reduction))


def test_gray_palette_cmyk_and_sixteen_bits_become_rgb() -> None:
    gray = PIXELS[:, :, 0]
    assert np.array_equal(images.decode(encode(gray, "PNG")), np.repeat(gray[:, :, None], 3, 2))
    assert images.decode(encode(gray, "JPEG")).shape == (20, 30, 3)
    wide = (gray.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(images.decode(encode(wide, "PNG")), np.repeat(gray[:, :, None], 3, 2))
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(buffer, "JPEG")
    assert images.decode(buffer.getvalue()).shape == (20, 30, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\xff\xd8", encode(PIXELS, "JPEG")[:200], encode(PIXELS, "PNG")[:300], b"\x00" * 5000],
)
def test_broken_bytes_give_a_reason(content: bytes) -> None:
    with pytest.raises(DataError):
        images.decode(content)


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DataError, match="too large: 30 x 20"):
            images.decode(encode(PIXELS, kind))
