from collections.abc import Iterator

import numpy as np
import pytest

from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import ArraySource, Block


@pytest.mark.parametrize("writeable", [True, False])
def test_reading_ahead_gives_every_block_in_order_and_every_error(writeable: bool) -> None:
    array = np.random.default_rng(0).normal(0, 1, (25, 3)).astype(np.float16)
    array.flags.writeable = writeable
    blocks = list(read_ahead(ArraySource(array, block_rows=7)))
    assert [first for first, _ in blocks] == [0, 7, 14, 21]
    assert np.array_equal(np.concatenate([block.numpy() for _, block in blocks]), array)

    class Breaks(ArraySource):
        def blocks(self) -> Iterator[Block]:
            yield 0, array[:5]
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        list(read_ahead(Breaks(array)))
