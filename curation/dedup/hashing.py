"""Perceptual hashes of images, and pairs of hashes that differ in few bits."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

_CHUNKS = 4
_SIDE = 32
"""Pixels a side of the images that are hashed."""
_FLAT = 2.0
"""Standard deviation of grey values, of 255, below which an image shows nothing."""
_HELD = 2**24
"""Candidate pairs compared at once."""


def image_hash(image: np.ndarray) -> int | None:
    """The perceptual hash of an image (H, W, 3) uint8; None if it shows nothing, for all such images would be alike."""
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.float64).mean(2)
    return int(perceptual_hash(grey[None])[0]) if grey.std() > _FLAT else None


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """(B,) uint64: hashes of grey images (B, 32, 32) of any scale; those of similar images differ in few bits.

    A bit says whether one of the 64 lowest frequencies of the cosine transform is above their median, from which the constant
    term is left out (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010).
    """
    n = np.arange(32, dtype=np.float64)
    basis = np.cos(np.pi * (n[None, :] + 0.5) * n[:8, None] / 32)
    low = (basis @ images.astype(np.float64) @ basis.T).reshape(len(images), 64)
    words = np.packbits(low > np.median(low[:, 1:], axis=1, keepdims=True), axis=1)
    return words.view(">u8")[:, 0].astype(np.uint64)


def near_hashes(hashes: np.ndarray, max_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of `hashes` (N,) uint64 that differ in at most `max_bits` bits: first, second (first < second), bits.

    If a hash is cut into four chunks, at least one chunk differs in at most a quarter of the bits, so only hashes with such a
    chunk are compared (Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012). A pair is found
    once, by the first chunk that qualifies. Equal hashes are paired with the first of them only.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    yield first[inverse[copies]], copies, np.zeros(len(copies), dtype=np.int64)
    reach = max_bits // _CHUNKS
    flips = np.array([v for v in range(2**16) if int(v).bit_count() <= reach], dtype=np.uint64)
    chunks = np.stack([(values >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(_CHUNKS)])
    for chunk in range(_CHUNKS):
        order = np.argsort(chunks[chunk], kind="stable")
        bounds = np.searchsorted(chunks[chunk][order], np.arange(2**16 + 1))
        for flip in flips:
            key = (chunks[chunk] ^ flip).astype(np.int64)
            counts = bounds[key + 1] - bounds[key]
            for batch in np.array_split(np.arange(len(values)), max(1, -(-int(counts.sum()) // _HELD))):
                left = np.repeat(batch, counts[batch])
                start = np.repeat(bounds[key[batch]] - (np.cumsum(counts[batch]) - counts[batch]), counts[batch])
                right = order[start + np.arange(len(left))]
                ahead = left < right
                left, right = left[ahead], right[ahead]
                bits = np.bitwise_count(values[left] ^ values[right]).astype(np.int64)
                near = bits <= max_bits
                left, right, bits = left[near], right[near], bits[near]
                repeated = np.zeros(len(left), dtype=bool)  # pairs that an earlier chunk has found
                for before in range(chunk):
                    repeated |= np.bitwise_count(chunks[before][left] ^ chunks[before][right]) <= reach
                one, two = first[left[~repeated]], first[right[~repeated]]
                yield np.minimum(one, two), np.maximum(one, two), bits[~repeated]
