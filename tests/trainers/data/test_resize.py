import numpy as np
import torch

from trainers.data.resize import to_square

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_squares_are_cut_from_the_centre() -> None:
    square = to_square(PIXELS, 20)
    assert torch.equal(square, torch.from_numpy(PIXELS[:, 5:25].copy()).permute(2, 0, 1))
    assert to_square(PIXELS, 10).shape == (3, 10, 10)
