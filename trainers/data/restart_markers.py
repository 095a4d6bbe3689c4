"""Restart markers for JPEGs, without loss, so that a loader decodes only what its crops show (`trainers.data.jpeg.part`).

Between two restart markers everything is coded on its own (ITU-T T.81, E.1.4): DC coefficients, coded as their differences from
the last, begin from 0. So the first differences of an interval are coded anew, and all other codes only move by some bits.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numba import njit

from trainers.data.jpeg import DHT, DRI, EOI, RST0, layout, segment

_MOST_INTERVALS = 8
"""In a row of MCUs: more would spare a crop little more."""
_LEAST_BYTES = 128
"""Of an interval, on average: each takes four more."""
_CATEGORIES = bytes(range(12))
"""How many bits the difference of two DC coefficients has (T.81, table F.1)."""
_STANDARD = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + _CATEGORIES
"""A Huffman table of all of them (T.81, table K.3)."""
_MOST_DC_BITS = 16 + 11


def with_restarts(content: bytes) -> bytes:
    """The JPEG with restart markers at the same places of every row of MCUs: up to eight, as many as divide it evenly.

    It has the same coefficients, so every decoder makes the same pixels of it, and whatever else the file holds. One that has
    these markers, is progressive, for print or very small, breaks off, or tells where another image begins in the same file
    (CIPA DC-007) comes back as it is.
    """
    found = layout(content)
    if found is None or b"MPF\0" in content[: found.scan]:
        return content
    used = sorted({table for c in found.components for table in (c.dc_table, c.ac_table)})
    if not found.tables.keys() >= set(used):
        return content
    rows, columns = found.grid
    most = min(_MOST_INTERVALS, len(content) // (rows * _LEAST_BYTES))
    if not most:
        return content
    interval = columns // max(count for count in range(1, most + 1) if columns % count == 0)
    if interval == found.interval:
        return content
    tables = {number: _with_all_categories(found.tables[number]) for number in used if number < 16}
    blocks = [
        (component, used.index(c.dc_table), used.index(c.ac_table))
        for component, c in enumerate(found.components)
        for _ in range(c.across * c.down)
    ]
    # Bytes may double, for a 0 follows 0xFF; an interval ends with its marker, and with bits to spare.
    num_bits = 8 * (len(content) - found.data) + rows * columns * len(blocks) * _MOST_DC_BITS
    out = np.empty(num_bits // 4 + 4 * (rows * columns // interval), np.uint8)
    end, size = _recode(
        np.frombuffer(content, np.uint8),
        found.data,
        np.array(blocks),
        _symbols(tuple(found.tables[number] for number in used)),
        np.stack([_codes_of_categories(table) for table in tables.values()]),
        rows * columns,
        found.interval,
        interval,
        out,
    )
    if content[end : end + 2] != bytes([0xFF, EOI]):
        return content
    new = segment(DHT, b"".join(bytes([number]) + table for number, table in tables.items()))
    new += segment(DRI, interval.to_bytes(2))
    return content[: found.scan] + new + content[found.scan : found.data] + out[:size].tobytes() + content[end:]


def _with_all_categories(table: bytes) -> bytes:
    """A Huffman table of DC differences with the codes that it has, and longer ones for those that it lacks."""
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
    """The codes of a Huffman table, how many bits each has, and what it stands for (T.81, annex C)."""
    code, at = 0, 16
    for length, count in enumerate(table[:16], 1):
        for symbol in table[at : at + count]:
            yield code, length, symbol
            code += 1
        code, at = code << 1, at + count


@lru_cache(8)
def _symbols(tables: tuple[bytes, ...]) -> np.ndarray:
    """(T, 65536) int16: of any 16 bits, how many are the first code, times 256, and what it stands for; 0: nothing."""
    found = np.zeros((len(tables), 1 << 16), np.int16)
    for row, table in zip(found, tables, strict=True):
        for code, length, symbol in _codes(table):
            row[code << (16 - length) : (code + 1) << (16 - length)] = length << 8 | symbol
    return found


@lru_cache(8)
def _codes_of_categories(table: bytes) -> np.ndarray:
    """(12, 2) int64: the code of each category, and its number of bits."""
    found = np.zeros((len(_CATEGORIES), 2), np.int64)
    for code, length, symbol in _codes(table):
        if symbol < len(found):
            found[symbol] = code, length
    return found


@njit(boundscheck=True)
def _recode(data, at, blocks, symbols, new_codes, num_mcus, old_interval, new_interval, out):
    """Code MCUs in intervals of another length. Where their data end and how many bytes were made; 0, 0 if they make no sense.

    `blocks` (B, 3): of each block of an MCU its component, and where its tables of DC and AC are in `symbols`. Those of DC come
    first, and their new codes are at the same places of `new_codes`.
    """
    nonsense, stop = (0, 0), len(data) - 1
    old_last, new_last = np.zeros(3, np.int64), np.zeros(3, np.int64)  # of each component, the last DC coefficient
    # The lowest `unread` bits are still to be read; the last `lent` of them are zeros, of after the end of the data.
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
    """Write one byte of coded data; the number of bytes then."""
    out[size] = byte
    if byte != 0xFF:
        return size + 1
    out[size + 1] = 0
    return size + 2
