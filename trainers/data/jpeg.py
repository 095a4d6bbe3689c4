"""The layout of JPEG files (ITU-T T.81), and regions of them: restart markers let a decoder begin in the middle of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

_BLOCK = 8
"""Side of a block, in pixels."""
_SOF = (0xC0, 0xC1)
"""Markers that begin the frame of a sequential JPEG with Huffman codes."""
DHT, DRI, RST0, EOI = 0xC4, 0xDD, 0xD0, 0xD9
_SOS = 0xDA
_TABLES = (DHT, DRI, 0xDB, *range(0xE0, 0xF0), 0xFE)
"""Markers that may stand before the frame or the scan: tables, application data and comments."""
_GRAY, _COLOUR = 1, 3
"""Numbers of components."""
_MAX_BLOCKS = 4
"""Largest number of blocks of a component in an MCU, in either direction."""
_MAX_SHARE = 0.9
"""Largest share of an image: a larger region takes longer to cut out of the file than its decoding saves."""


def segment(marker: int, content: bytes) -> bytes:
    """A marker segment: the marker, the length, and `content`."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


class Component(NamedTuple):
    """A colour component of a scan."""

    across: int
    """Number of its blocks in an MCU, horizontally and vertically."""
    down: int
    dc_table: int
    ac_table: int


@dataclass(frozen=True)
class Layout:
    """A JPEG of one scan, whose MCUs (minimum coded units: some blocks of each component) follow one another row by row."""

    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    components: tuple[Component, ...]
    tables: Mapping[int, bytes]
    """The Huffman tables as in the file, sixteen counts and then symbols; the numbers of AC tables begin at 16."""
    interval: int
    """Number of MCUs from one restart marker to the next; 0: no restart markers."""
    frame: int
    """Position of the height in the file; the width follows."""
    scan: int
    """Position of the header of the scan."""
    data: int
    """Position of the coded data."""

    @cached_property
    def mcu(self) -> tuple[int, int]:
        """Height and width of an MCU, pixels."""
        return _BLOCK * max(c.down for c in self.components), _BLOCK * max(c.across for c in self.components)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of MCUs."""
        return -(-self.height // self.mcu[0]), -(-self.width // self.mcu[1])


def layout(content: bytes) -> Layout | None:
    """The layout of a JPEG; None if it is progressive, is CMYK, has more than one scan, or is malformed."""
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
                # The blocks of a single component are in row order, whatever sampling the header states (A.2.2).
                single = num_components == _GRAY
                components = tuple(
                    Component(*((1, 1) if single else sampling[content[at]]), content[at + 1] >> 4, 16 + (content[at + 1] & 15))
                    for at in range(place + 5, place + 5 + 2 * content[place + 4], 2)
                )
                sane = end <= len(content) and height and width and len(components) == num_components in (_GRAY, _COLOUR)
                if not sane or not all(0 < side <= _MAX_BLOCKS for c in components for side in (c.across, c.down)):
                    return None
                return Layout(height, width, components, tables, interval, frame, place, end)
            elif kind not in _TABLES:
                return None
            place = end
    except (IndexError, KeyError):
        return None
    return None


class Region(NamedTuple):
    """A JPEG of a region of another one, and the place of the region there, in pixels."""

    content: bytearray
    top: int
    left: int
    height: int
    width: int


def region(content: bytes, box: tuple[int, int, int, int]) -> Region | None:
    """The smallest region of a JPEG that contains `box` (top, left, height, width), as a JPEG.

    It decodes to the same pixels except for up to two at its inner edges: a decoder that smooths subsampled colours reads the
    neighbours. None if there are no restart markers at the same places of every row, or if the region is most of the image.
    """
    whole = layout(content)
    if whole is None or not whole.interval or whole.grid[1] % whole.interval:
        return None
    # From here on the cells of the grid are intervals, each with the marker that ends it.
    high, wide = whole.mcu[0], whole.mcu[1] * whole.interval
    rows, columns = whole.grid[0], whole.grid[1] // whole.interval
    top, left, height, width = box
    above, below = top // high, min(-(-(top + height) // high), rows)
    before, after = left // wide, min(-(-(left + width) // wide), columns)
    if (below - above) * (after - before) > _MAX_SHARE * rows * columns:
        return None
    ends = _ends(content, whole.data, rows * columns)
    if ends is None:
        return None
    begins = np.concatenate([[whole.data], ends[:-1]])
    begins, ends = (places.reshape(rows, columns)[above:below, before:after] for places in (begins, ends))
    height = min(whole.height, below * high) - above * high
    width = min(whole.width, after * wide) - before * wide
    header = content[: whole.frame] + height.to_bytes(2) + width.to_bytes(2) + content[whole.frame + 4 : whole.data]
    view = memoryview(content)
    pieces = zip(begins[:, 0].tolist(), ends[:, -1].tolist(), strict=True)
    smaller = bytearray().join([header, *(view[begin:end] for begin, end in pieces)])
    markers = len(header) - 1 + np.cumsum(ends - begins)
    kinds = np.frombuffer(smaller, np.uint8)
    kinds[markers] = RST0 + np.arange(len(markers)) % 8
    kinds[-1] = EOI
    return Region(smaller, above * high, before * wide, height, width)


def _ends(content: bytes, begin: int, num_intervals: int) -> np.ndarray | None:
    """The ends (I,) int64 of the intervals whose data begin at `begin`; None if there are not `num_intervals`."""
    data = np.frombuffer(content, np.uint8)[begin:]
    places = np.flatnonzero(data[:-1] == 0xFF)
    kinds = data[places + 1]
    markers = kinds != 0  # after a 0xFF that is coded data
    places, kinds = places[markers][:num_intervals], kinds[markers][:num_intervals]
    if len(kinds) < num_intervals or kinds[-1] != EOI or (kinds[:-1] & 0xF8 != RST0).any():
        return None
    return places + (begin + 2)
