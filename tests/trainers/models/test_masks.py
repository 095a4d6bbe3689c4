import numpy as np
import pytest
import torch

from trainers.models.masks import block_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.9, 0.95), (0.01, 0.02)])
def test_hidden_patches_are_as_many_as_drawn_and_in_the_order_of_samples(ratio: tuple[float, float]) -> None:
    mask = block_mask(np.arange(40), (14, 14), probability=0.5, ratio=ratio, rng_key=3, device=CPU)
    counts = mask.hidden.sum(1)
    masked = counts[counts > 0] / 196
    assert 20 <= len(masked) <= 60
    assert masked.min() >= ratio[0] - 0.003
    assert masked.max() <= ratio[1] + 0.003
    flat = mask.hidden.flatten()
    assert set(mask.rows.tolist()) == set(flat.nonzero()[:, 0].tolist())
    crop = mask.rows // 196
    assert (np.diff(crop.numpy() % 40) >= 0).all()
    assert torch.allclose(mask.weight, 1 / counts[crop])


def test_masks_belong_to_positions_and_come_in_blocks() -> None:
    options = {"grid": (14, 14), "probability": 1.0, "ratio": (0.3, 0.4), "rng_key": 3, "device": CPU}
    whole = block_mask(np.arange(8), **options)  # type: ignore[arg-type]
    some = block_mask(np.array([1, 5]), **options)  # type: ignore[arg-type]
    crops = whole.hidden.view(2, 8, 196)
    assert torch.equal(some.hidden.view(2, 2, 196), crops[:, [1, 5]])
    assert not torch.equal(crops[0], crops[1])
    grid = crops.view(16, 14, 14)
    alike = (grid[:, 1:] == grid[:, :-1]).float().mean()  # neighbours: 0.55 if each were drawn by itself
    assert alike > 0.8
