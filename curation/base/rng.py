"""Random numbers as a pure function of a key and a counter.

Every draw is keyed on (seed, stage, round, …) and counted by row, epoch or step, so it is the same on any number of
workers, after any restart, and in any order of work. There is no global state. All functions take the 64-bit random key
`rng_key`, made by `key`.

Philox4x32-10: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import hashlib

import numpy as np

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def key(*parts: int | str) -> int:
    """A 64-bit random key for one purpose, for example `key(seed, "views", epoch)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(rng_key: int) -> np.random.Generator:
    """A numpy generator, for draws that one place makes one after another."""
    return np.random.Generator(np.random.Philox(key=rng_key))


def philox(rng_key: int, counters: np.ndarray) -> np.ndarray:
    """Apply ten rounds of Philox4x32 to `counters` (N, 4) uint32; returns (N, 4) uint32."""
    words = [counters[:, i].astype(np.uint64) for i in range(4)]
    keys = [rng_key & 0xFFFFFFFF, rng_key >> 32]
    for _ in range(10):
        first, second = words[0] * _MULTIPLIER[0], words[2] * _MULTIPLIER[1]
        words = [
            (second >> _HALF) ^ words[1] ^ np.uint64(keys[0]),
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ np.uint64(keys[1]),
            first & _LOW,
        ]
        keys = [(k + w) & 0xFFFFFFFF for k, w in zip(keys, _WEYL, strict=True)]
    return np.stack(words, axis=1).astype(np.uint32)


def bits(rng_key: int, rows: np.ndarray, num: int) -> np.ndarray:
    """(N, num) uint32: `num` random words for each of `rows` (N,) int64."""
    rows = np.ascontiguousarray(rows, dtype=np.int64).astype(np.uint64)
    counters = np.zeros((len(rows), -(-num // 4), 4), dtype=np.uint32)
    counters[:, :, 0] = (rows & _LOW)[:, None]
    counters[:, :, 1] = (rows >> _HALF)[:, None]
    counters[:, :, 2] = np.arange(counters.shape[1])
    return philox(rng_key, counters.reshape(-1, 4)).reshape(len(rows), -1)[:, :num]


def uniform(rng_key: int, rows: np.ndarray, num: int = 1) -> np.ndarray:
    """(N, num) float64: `num` numbers in [0, 1) for each of `rows` (N,) int64, with 32 random bits each."""
    return bits(rng_key, rows, num) * 2.0**-32


def tickets(rng_key: int, first: int, num: int) -> np.ndarray:
    """(num,) uint32: a random word for each of the rows `first`, `first` + 1, …; far cheaper than `bits` for many rows."""
    # A block of the generator is eight words; those of rows before `first` are drawn and dropped.
    skipped = first % 8
    numbers = np.random.Generator(np.random.Philox(key=rng_key, counter=first // 8))
    return numbers.integers(0, 2**32, skipped + num, dtype=np.uint32)[skipped:]


def order(rng_key: int, rows: np.ndarray) -> np.ndarray:
    """(N,) uint64: keys that shuffle `rows` (N,) when they are sorted by them; a subset keeps its relative order."""
    words = bits(rng_key, rows, 2).astype(np.uint64)
    return words[:, 0] << _HALF | words[:, 1]


def permute(rng_key: int, positions: np.ndarray, size: int) -> np.ndarray:
    """(N,) int64: images of `positions` (N,) under a random permutation of range(`size`).

    Each position is computed on its own in O(1) memory, so an epoch's order needs no table and resuming costs nothing.
    The permutation is a balanced Feistel network over the next power of four, applied again until the value lies in the range
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Raises ValueError for positions outside it.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if len(positions) and (positions.min() < 0 or positions.max() >= size):
        raise ValueError(f"positions must lie in [0, {size}); got {positions.min()} to {positions.max()}")
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> shift, values[outside] & mask
        for step in range(6):
            mixed = bits(rng_key ^ (step << 56), right.astype(np.int64), 1)[:, 0].astype(np.uint64)
            left, right = right, left ^ (mixed & mask)
        values[outside] = left << shift | right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def permute_each(rng_key: int, which: np.ndarray, positions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) int64: images of `positions` (N,), each under its own permutation: number `which` (N,), of range(`sizes` (N,)).

    Otherwise like `permute`.
    """
    which, positions, sizes = (np.asarray(x, dtype=np.int64).astype(np.uint64) for x in (which, positions, sizes))
    if (positions >= sizes).any():
        raise ValueError("each position must be at least 0 and below its size")
    half_bits = np.maximum(1, (np.frexp((sizes - np.uint64(1)).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    masks = (np.uint64(1) << half_bits) - np.uint64(1)
    values = positions.copy()
    outside = np.arange(len(values))
    while len(outside):
        shift, mask, name = half_bits[outside], masks[outside], which[outside]
        left, right = values[outside] >> shift, values[outside] & mask
        for step in range(6):
            counters = np.stack([right, np.full_like(right, step), name & _LOW, name >> _HALF], axis=1).astype(np.uint32)
            left, right = right, left ^ (philox(rng_key, counters)[:, 0].astype(np.uint64) & mask)
        values[outside] = left << shift | right
        outside = outside[values[outside] >= sizes[outside]]
    return values.astype(np.int64)
