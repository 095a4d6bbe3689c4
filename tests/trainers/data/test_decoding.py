import io

import numpy as np
import pytest
from PIL import Image

from curation.base.errors import DataError
from trainers.data import decoding as images


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
    monkeypatch.setattr(images._buffer, "pixels", np.full(room, 7, dtype=np.uint8))
    for content in (encode(PIXELS, "JPEG"), encode(PIXELS[:7, :9], "JPEG"), encode(PIXELS[:, ::-1], "PNG")):
        assert np.array_equal(images.decode_window(content, (0, 0, 7, 9), 1).pixels, images.decode(content))


@pytest.mark.parametrize("sampling", [(0x22, 0x11, 0x11), (0x14, 0x11, 0x11), (0x31, 0x11, 0x11), (0x11, 0x21, 0x11)])
def test_every_sampling_of_colours_is_decoded(sampling: tuple[int, ...]) -> None:
    """A single MCU, gray all over."""
    content = bytearray(encode(np.full((8, 8, 3), 128, np.uint8), "JPEG", subsampling="4:4:4"))
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    height, width = 8 * max(s & 15 for s in sampling), 8 * max(s >> 4 for s in sampling)
    content[frame + 5 : frame + 9] = height.to_bytes(2) + width.to_bytes(2)
    for component in range(3):
        content[frame + 11 + 3 * component] = sampling[component]
        content[scan + 6 + 2 * component] = 0
    blocks = "001010" * sum((s & 15) * (s >> 4) for s in sampling)  # no difference, end of block (T.81, tables K.3 and K.5)
    content = bytes(content[: scan + 14]) + int(blocks.ljust(64, "1"), 2).to_bytes(8) + b"\xff\xd9"
    assert images.size_of(content) == (height, width)
    assert np.array_equal(images.decode(content), np.full((height, width, 3), 128))
    assert images.decode_window(content, (0, 0, 4, 4), 1).pixels.shape == (height, width, 3)


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
    [
        b"",
        b"hello",
        b"\xff\xd8",
        b"\xff\xd8 no image",
        encode(PIXELS, "JPEG")[:200],
        encode(PIXELS, "PNG")[:300],
        b"\x00" * 5000,
    ],
)
def test_broken_bytes_give_a_reason(content: bytes) -> None:
    reason = "corrupt JPEG" if images.is_jpeg(content) else "corrupt image" if content else "empty file"
    with pytest.raises(DataError, match=reason):
        images.decode(content)


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DataError, match="too large: 30 x 20"):
            images.decode(encode(PIXELS, kind))
