"""The sheet: all small pictures of the page as one image."""

import base64
import io

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageOps

SHEET_COLUMNS = 32
_MAX_CELL = 64
"""Pixels of the side of a thumbnail, at most."""


class Sheet:
    """Square thumbnails in rows of SHEET_COLUMNS, each known by its number."""

    def __init__(self) -> None:
        self._cells: list[Image.Image] = []

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, image: np.ndarray) -> int:
        """Cut the centre out of (H, W, 3) uint8, make it small, and keep it; its number."""
        side = min(*image.shape[:2], _MAX_CELL)
        self._cells.append(ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.LANCZOS))
        return len(self._cells) - 1

    @property
    def rows(self) -> int:
        """At least two, so that the style sheet may divide by one less."""
        return max(2, -(-len(self._cells) // SHEET_COLUMNS))

    def data_uri(self) -> Markup:
        """All thumbnails as one WebP image."""
        side = max((cell.width for cell in self._cells), default=1)
        sheet = Image.new("RGB", (SHEET_COLUMNS * side, self.rows * side), "white")
        for number, cell in enumerate(self._cells):
            corner = (number % SHEET_COLUMNS * side, number // SHEET_COLUMNS * side)
            sheet.paste(cell if cell.width == side else cell.resize((side, side), Image.Resampling.NEAREST), corner)
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=72, method=4)
        return Markup("data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode())  # noqa: S704
