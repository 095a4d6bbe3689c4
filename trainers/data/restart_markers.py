"""Restart markers for JPEGs, without loss, so that a loader decodes only what its crops show (`trainers.data.jpeg.region`).

Between two restart markers everything is coded on its own (ITU-T T.81, E.1.4): DC coefficients, coded as their differences from
the last, begin from 0. So the first differences of an interval are coded anew, and all other codes only move by some bits.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numba import njit

from trainers.data.jpeg import DHT, DRI, EOI, RST0, layout, segment

_MAX_INTERVALS = 8
"""Largest number of intervals in a row of MCUs: more would save little more."""
_MIN_BYTES = 128
"""Smallest mean size of an interval: each adds four bytes."""
_CATEGORIES = bytes(range(12))
"""Numbers of bits that the difference of two DC coefficients may have (T.81, table F.1)."""
_STANDARD = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + _CATEGORIES
"""A Huffman table of all categories (T.81, table K.3)."""
_MAX_DC_BITS = 16 + 11


def with_restarts(content: bytes) -> bytes:
    """The JPEG with restart markers at the same places of every row of MCUs: up to eight, as many as divide it evenly.

    The coefficients are the same, so every decoder makes the same pixels of it, and everything else in the file stays. A JPEG
    comes back unchanged if it has these markers, is progressive, CMYK or very small, is truncated, or holds the position of
    another image in the same file (CIPA DC-007).
    """
    whole = layout(content)
    if whole is None or b"MPF\0" in content[: whole.scan]:
        return content
    numbers = sorted({table for c in whole.components for table in (c.dc_table, c.ac_table)})
    if not whole.tables.keys() >= set(numbers):
        return content
    rows, columns = whole.grid
    most = min(_MAX_INTERVALS, len(content) // (rows * _MIN_BYTES))
    if not most:
        return content
    interval = columns // max(count for count in range(1, most + 1) if columns % count == 0)
    if interval == whole.interval:
        return content
    tables = {number: _with_all_categories(whole.tables[number]) for number in numbers if number < 16}
    blocks = [
        (component, numbers.index(c.dc_table), numbers.index(c.ac_table))
        for component, c in enumerate(whole.components)
        for _ in range(c.across * c.down)
    ]
    # Bytes may double, for a 0 follows 0xFF; an interval ends with its marker, and with bits to spare.
    num_bits = 8 * (len(content) - whole.data) + rows * columns * len(blocks) * _MAX_DC_BITS
    out = np.empty(num_bits // 4 + 4 * (rows * columns // interval), np.uint8)
    end, size = _recode(
        np.frombuffer(content, np.uint8),
        whole.data,
        np.array(blocks),
        _symbols(tuple(whole.tables[number] for number in numbers)),
        np.stack([_codes_of_categories(table) for table in tables.values()]),
        rows * columns,
        whole.interval,
        interval,
        out,
    )
    if content[end : end + 2] != bytes([0xFF, EOI]):
        return content
    new = segment(DHT, b"".join(bytes([number]) + table for number, table in tables.items()))
    new += segment(DRI, interval.to_bytes(2))
    return content[: whole.scan] + new + content[whole.scan : whole.data] + out[:size].tobytes() + content[end:]


def _with_all_categories(table: bytes) -> bytes:
    """A Huffman table of DC differences with its own codes, and longer codes for the categories that it lacks."""
    counts, symbols = list(table[:16]), table[16:]
    if len(symbols) > len(_CATEGORIES):
        return _STANDARD
    lacking = bytes(set(_CATEGORIES) - set(symbols))
    taken = sum(count << (15 - place) for place, count in enumerate(counts))
    for place in range(max(np.flatnonzero(counts), default=0), 16):
        if taken + ((len(lacking) + 1) << (15 - place)) <= 1 << 16:  # a code of nothing but ones is not allowed
            counts[place] += len(lacking)
            return bytes(counts) + symbols + lacking
    return _STANDARD


def _codes(table: bytes) -> Iterator[tuple[int, int, int]]:
    """The codes of a Huffman table: (code, number of bits, symbol) of each (T.81, annex C)."""
    code, at = 0, 16
    for length, count in enumerate(table[:16], 1):
        for symbol in table[at : at + count]:
            yield code, length, symbol
            code += 1
        code, at = code << 1, at + count


@lru_cache(8)
def _symbols(tables: tuple[bytes, ...]) -> np.ndarray:
    """(T, 65536) int16: for any 16 bits the length of the code they begin with, times 256, plus its symbol; 0: no code."""
    symbols = np.zeros((len(tables), 1 << 16), np.int16)
    for row, table in zip(symbols, tables, strict=True):
        for code, length, symbol in _codes(table):
            row[code << (16 - length) : (code + 1) << (16 - length)] = length << 8 | symbol
    return symbols


@lru_cache(8)
def _codes_of_categories(table: bytes) -> np.ndarray:
    """(12, 2) int64: the code of each category, and its number of bits."""
    codes = np.zeros((len(_CATEGORIES), 2), np.int64)
    for code, length, symbol in _codes(table):
        if symbol < len(codes):
            codes[symbol] = code, length
    return codes


@njit(boundscheck=True)
def _recode(data, at, blocks, symbols, new_codes, num_mcus, old_interval, new_interval, out):
    """Code MCUs in intervals of another length; returns the end of their data and the bytes written, 0, 0 if malformed.

    `blocks` (B, 3): for each block of an MCU its component, and the places of its DC and AC tables in `symbols`. DC tables come
    first, and their new codes are at the same places of `new_codes`.
    """
    nonsense, stop = (0, 0), len(data) - 1
    old_last, new_last = np.zeros(3, np.int64), np.zeros(3, np.int64)  # of each component, the last DC coefficient
    # The lowest `unread` bits are still to be read; the last `lent` of them are zeros from after the end of the data.
    bits, unread, lent = 0, 0, 0
    coded, unwritten, size = 0, 0, 0
    for mcu in range(1, num_mcus + 1):
        for block in range(len(blocks)):
            component, dc, ac = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            place = 0
            while place < 64:
                while unread < 32:
                    if at < stop and data[at] < 0xFF:
                        bits, at, unread = bits << 8 | data[at], at + 1, unread + 8
                    elif at < stop and data[at + 1] == 0:
                        bits, at, unread = bits << 8 | 0xFF, at + 2, unread + 8
                    else:
                        bits, unread, lent = bits << 8, unread + 8, lent + 8
                entry = symbols[ac if place else dc, bits >> (unread - 16) & 0xFFFF]
                length, run, num_bits = entry >> 8, entry >> 4 & 15, entry & 15
                if length == 0:
                    return nonsense
                unread -= length + num_bits
                if unread < lent:
                    return nonsense
                if place:
                    length += num_bits
                    code = bits >> unread & ((1 << length) - 1)
                    place += run + 1 if num_bits or run == 15 else 64
                else:
                    if num_bits:  # of a negative difference one less is coded (T.81, F.1.2.1)
                        value = bits >> unread & ((1 << num_bits) - 1)
                        old_last[component] += value if value >> (num_bits - 1) else value + 1 - (1 << num_bits)
                    difference = old_last[component] - new_last[component]
                    new_last[component] = old_last[component]
                    num_bits = 0
                    while abs(difference) >> num_bits:
                        num_bits += 1
                    if num_bits >= len(_CATEGORIES):
                        return nonsense
                    length = new_codes[dc, num_bits, 1] + num_bits
                    code = new_codes[dc, num_bits, 0] << num_bits | (difference - (difference < 0) & ((1 << num_bits) - 1))
                    place = 1
                coded, unwritten = coded << length | code, unwritten + length
                while unwritten >= 8:
                    unwritten -= 8
                    size = _put(out, size, coded >> unwritten & 0xFF)
        if mcu % new_interval == 0:
            if unwritten:  # filled with ones (T.81, F.1.2.3)
                size = _put(out, size, (coded << 8 | 0xFF) >> unwritten & 0xFF)
            out[size], out[size + 1] = 0xFF, RST0 + (mcu // new_interval - 1) % 8
            unwritten, size = 0, size + 2
            new_last[:] = 0
        if mcu == num_mcus or (old_interval and mcu % old_interval == 0):
            if unread - lent >= 8:
                return nonsense
            if mcu < num_mcus:
                if at >= stop or data[at] != 0xFF or data[at + 1] != RST0 + (mcu // old_interval - 1) % 8:
                    return nonsense
                at, unread, lent = at + 2, 0, 0
                old_last[:] = 0
    return at, size - 2


@njit(boundscheck=True)
def _put(out, size, byte):
    """Write one byte of coded data; returns the number of bytes then."""
    out[size] = byte
    if byte != 0xFF:
        return size + 1
    out[size + 1] = 0
    return size + 2
