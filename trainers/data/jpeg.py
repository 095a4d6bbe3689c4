"""The layout of JPEG files (ITU-T T.81), and parts of them: restart markers let a decoder begin in the middle of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

_BLOCK = 8
"""Pixels along a side of what is coded together."""
_SOF = (0xC0, 0xC1)
"""Begin the frame of a sequential JPEG with Huffman codes."""
DHT, DRI, RST0, EOI = 0xC4, 0xDD, 0xD0, 0xD9
_SOS = 0xDA
_TABLES = (DHT, DRI, 0xDB, *range(0xE0, 0xF0), 0xFE)
"""May stand before the frame or the scan: tables, what applications and people have to say."""
_GRAY, _COLOUR = 1, 3
"""Numbers of components."""
_MOST_BLOCKS = 4
"""Of a component in an MCU, in either direction."""
_WORTH = 0.9
"""Of an image: a larger part takes longer to cut out of the file than it spares."""


def segment(marker: int, content: bytes) -> bytes:
    """A marker with what belongs to it."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


class Component(NamedTuple):
    """A colour of a scan."""

    across: int
    """Blocks of it in an MCU, side by side, and one upon the other."""
    down: int
    dc_table: int
    ac_table: int


@dataclass(frozen=True)
class Layout:
    """A JPEG of one scan, whose MCUs (minimum coded units: some blocks of each component) follow one another row by row."""

    height: int
    """Pixels, and so are the following."""
    width: int
    components: tuple[Component, ...]
    tables: Mapping[int, bytes]
    """The Huffman tables as the file has them, sixteen counts and then symbols; those of AC begin at 16."""
    interval: int
    """MCUs from one restart marker to the next; 0: there are none."""
    frame: int
    """Where the height begins in the file; the width follows."""
    scan: int
    """Where the header of the scan begins."""
    data: int
    """Where the coded data begin."""

    @cached_property
    def mcu(self) -> tuple[int, int]:
        """Height and width of an MCU, pixels."""
        return _BLOCK * max(c.down for c in self.components), _BLOCK * max(c.across for c in self.components)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of MCUs."""
        return -(-self.height // self.mcu[0]), -(-self.width // self.mcu[1])


def layout(content: bytes) -> Layout | None:
    """How a JPEG is laid out; None if it is progressive, is for print, has more than one scan, or makes no sense."""
    place, interval, tables = 2, 0, dict[int, bytes]()
    height = width = num_components = frame = 0
    sampling = dict[int, tuple[int, int]]()
    try:
        while content[place] == 0xFF:
            kind, end = content[place + 1], place + 2 + int.from_bytes(content[place + 2 : place + 4])
            if kind in _SOF and not frame:
                frame = place + 5
                height, width = int.from_bytes(content[frame : frame + 2]), int.from_bytes(content[frame + 2 : frame + 4])
                num_components = content[frame + 4]
                for at in range(frame + 5, frame + 5 + 3 * num_components, 3):
                    sampling[content[at]] = content[at + 1] >> 4, content[at + 1] & 15
            elif kind == DHT:
                at = place + 4
                while at < end:
                    after = at + 17 + sum(content[at + 1 : at + 17])
                    tables[content[at]] = content[at + 1 : after]
                    at = after
            elif kind == DRI:
                interval = int.from_bytes(content[place + 4 : place + 6])
            elif kind == _SOS and frame:
                # The blocks of a single component lie row by row, however it is said to be sampled (A.2.2).
                single = num_components == _GRAY
                components = tuple(
                    Component(*((1, 1) if single else sampling[content[at]]), content[at + 1] >> 4, 16 + (content[at + 1] & 15))
                    for at in range(place + 5, place + 5 + 2 * content[place + 4], 2)
                )
                sane = end <= len(content) and height and width and len(components) == num_components in (_GRAY, _COLOUR)
                if not sane or not all(0 < side <= _MOST_BLOCKS for c in components for side in (c.across, c.down)):
                    return None
                return Layout(height, width, components, tables, interval, frame, place, end)
            elif kind not in _TABLES:
                return None
            place = end
    except (IndexError, KeyError):
        return None
    return None


class Part(NamedTuple):
    """A JPEG of a part of another one, and where it is in that, in pixels."""

    content: bytearray
    top: int
    left: int
    height: int
    width: int


def part(content: bytes, box: tuple[int, int, int, int]) -> Part | None:
    """The least part of a JPEG that has all of `box` (top, left, height, width).

    It decodes to the same pixels but for two at its inner edges, perhaps: a decoder that smooths colours of a lower resolution
    looks at their neighbours. None if there are no restart markers at the same places of every row, or most would be left.
    """
    found = layout(content)
    if found is None or not found.interval or found.grid[1] % found.interval:
        return None
    # The cells of the grid are from here on intervals, each with the marker that ends it.
    high, wide = found.mcu[0], found.mcu[1] * found.interval
    rows, columns = found.grid[0], found.grid[1] // found.interval
    top, left, height, width = box
    above, below = top // high, min(-(-(top + height) // high), rows)
    before, after = left // wide, min(-(-(left + width) // wide), columns)
    if (below - above) * (after - before) > _WORTH * rows * columns:
        return None
    ends = _ends(content, found.data, rows * columns)
    if ends is None:
        return None
    begins = np.concatenate([[found.data], ends[:-1]])
    begins, ends = (places.reshape(rows, columns)[above:below, before:after] for places in (begins, ends))
    height = min(found.height, below * high) - above * high
    width = min(found.width, after * wide) - before * wide
    header = content[: found.frame] + height.to_bytes(2) + width.to_bytes(2) + content[found.frame + 4 : found.data]
    view = memoryview(content)
    pieces = zip(begins[:, 0].tolist(), ends[:, -1].tolist(), strict=True)
    smaller = bytearray().join([header, *(view[begin:end] for begin, end in pieces)])
    markers = len(header) - 1 + np.cumsum(ends - begins)
    kinds = np.frombuffer(smaller, np.uint8)
    kinds[markers] = RST0 + np.arange(len(markers)) % 8
    kinds[-1] = EOI
    return Part(smaller, above * high, before * wide, height, width)


def _ends(content: bytes, begin: int, num_intervals: int) -> np.ndarray | None:
    """Where the intervals end whose data begin at `begin`, (I,) int64; None if it is not this number."""
    data = np.frombuffer(content, np.uint8)[begin:]
    places = np.flatnonzero(data[:-1] == 0xFF)
    kinds = data[places + 1]
    markers = kinds != 0  # after a 0xFF that is coded data
    places, kinds = places[markers][:num_intervals], kinds[markers][:num_intervals]
    if len(kinds) < num_intervals or kinds[-1] != EOI or (kinds[:-1] & 0xF8 != RST0).any():
        return None
    return places + (begin + 2)
