import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from curation.dedup.hashing import near_hashes, perceptual_hash


def test_the_hash_is_the_sign_of_the_lowest_cosine_frequencies() -> None:
    images = np.random.default_rng(0).random((5, 32, 32)) * 255
    hashes = perceptual_hash(images)
    for image, found in zip(images, hashes, strict=True):
        # scipy scales the constant row and column otherwise; the sign about the median of unscaled ones is what counts.
        low = dctn(image, type=2)[:8, :8]
        bits = (low > np.median(low.flatten()[1:])).flatten()
        assert int(found) == int("".join("1" if bit else "0" for bit in bits), 2)


def test_alike_images_have_alike_hashes_and_others_do_not() -> None:
    draws = np.random.default_rng(0)
    smooth = F.interpolate(torch.from_numpy(draws.random((20, 1, 6, 6))), size=(256, 256), mode="bicubic")[:, 0]
    pictures = [Image.fromarray((255 * image).clip(0, 255).numpy().astype(np.uint8)) for image in smooth]

    def hashed(images: list[Image.Image]) -> np.ndarray:
        small = [np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float32) for image in images]
        return perceptual_hash(np.stack(small))

    plain = hashed(pictures)
    brighter = hashed([image.point(lambda v: min(255, v * 0.9 + 10)) for image in pictures])
    smaller = hashed([image.resize((100, 90)) for image in pictures])
    for changed in (brighter, smaller):
        assert np.bitwise_count(plain ^ changed).max() <= 6
    assert min(np.bitwise_count(plain[i] ^ plain[j]) for i in range(20) for j in range(i)) > 6


@pytest.mark.parametrize("max_bits", [0, 3, 4, 7, 8])
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_every_pair_of_hashes_within_the_radius_is_found_once(max_bits: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    base = draws.integers(0, 2**64, 12, dtype=np.uint64)
    noise = np.bitwise_or.reduce(np.uint64(1) << draws.integers(0, 64, (5, 12, 4), dtype=np.uint64), axis=2)
    hashes = np.unique((base ^ noise).flatten())
    draws.shuffle(hashes)
    found = [(int(a), int(b), int(n)) for piece in near_hashes(hashes, max_bits) for a, b, n in zip(*piece, strict=True)]
    bits = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = [
        (i, j, int(bits[i, j])) for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if bits[i, j] <= max_bits
    ]
    assert sorted(found) == expected


def test_equal_hashes_are_paired_with_the_first() -> None:
    pieces = list(near_hashes(np.array([7, 9 << 40, 7, 7], dtype=np.uint64), 2))
    assert [(a, b) for piece in pieces for a, b, _ in zip(*piece, strict=True)] == [(0, 2), (0, 3)]
