"""Perceptual hashes of images, and pairs of them that differ in few bits."""

from collections.abc import Iterator

import numpy as np

_CHUNKS = 4
_HELD = 2**24
"""Candidate pairs compared at once."""


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """(B,) uint64 hashes of grey images (B, 32, 32) of any scale; alike images differ in few bits.

    The signs of the 64 lowest frequencies of a cosine transform, about their median, the constant left out of the median
    (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010).
    """
    n = np.arange(32, dtype=np.float64)
    basis = np.cos(np.pi * (n[None, :] + 0.5) * n[:8, None] / 32)
    low = (basis @ images.astype(np.float64) @ basis.T).reshape(len(images), 64)
    words = np.packbits(low > np.median(low[:, 1:], axis=1, keepdims=True), axis=1)
    return words.view(">u8")[:, 0].astype(np.uint64)


def near_hashes(hashes: np.ndarray, max_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of `hashes` (N,) uint64 that differ in at most `max_bits` bits: first, second (first < second), bits.

    Of four parts of a hash at least one differs in at most a quarter of the bits, so only hashes that share such a part are
    compared (Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012). A pair is found by the
    first part that qualifies, once. Equal hashes are paired with the first of them only.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    yield first[inverse[copies]], copies, np.zeros(len(copies), dtype=np.int64)
    reach = max_bits // _CHUNKS
    flips = np.array([v for v in range(2**16) if int(v).bit_count() <= reach], dtype=np.uint64)
    parts = np.stack([(values >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(_CHUNKS)])
    for chunk in range(_CHUNKS):
        order = np.argsort(parts[chunk], kind="stable")
        bounds = np.searchsorted(parts[chunk][order], np.arange(2**16 + 1))
        for flip in flips:
            key = (parts[chunk] ^ flip).astype(np.int64)
            counts = bounds[key + 1] - bounds[key]
            for some in np.array_split(np.arange(len(values)), max(1, -(-int(counts.sum()) // _HELD))):
                left = np.repeat(some, counts[some])
                start = np.repeat(bounds[key[some]] - (np.cumsum(counts[some]) - counts[some]), counts[some])
                right = order[start + np.arange(len(left))]
                ahead = left < right
                left, right = left[ahead], right[ahead]
                bits = np.bitwise_count(values[left] ^ values[right]).astype(np.int64)
                near = bits <= max_bits
                left, right, bits = left[near], right[near], bits[near]
                earlier = np.zeros(len(left), dtype=bool)
                for before in range(chunk):
                    earlier |= np.bitwise_count(parts[before][left] ^ parts[before][right]) <= reach
                one, two = first[left[~earlier]], first[right[~earlier]]
                yield np.minimum(one, two), np.maximum(one, two), bits[~earlier]
