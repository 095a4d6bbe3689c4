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
def test_a_window_that_is_not_kept_is_the_same(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(images._room, "pixels", np.full(room, 7, dtype=np.uint8))
    for content in (encode(PIXELS, "JPEG"), encode(PIXELS[:7, :9], "JPEG"), encode(PIXELS[:, ::-1], "PNG")):
        assert np.array_equal(images.decode_window(content, (0, 0, 7, 9), 1).pixels, images.decode(content))


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
