"""Colours by the GPU's kernels are those of the torch twin."""

import numpy as np
import pytest
import torch

from trainers.data import colour

kernels = pytest.importorskip("trainers.data.colour_kernels", reason="Triton is only on Linux")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(20, 24), (33, 41)])
def test_every_change_in_every_order_is_that_of_the_twin(shape: tuple[int, int]) -> None:
    draws = np.random.default_rng(0)
    num = 26
    crops = torch.from_numpy(draws.integers(0, 256, (num, 3, *shape)).astype(np.uint8))
    crops[0], crops[1, :, :5], crops[2, 1] = 7, 0, crops[2, 0]
    changes = colour.Changes(
        flip=draws.random(num) < 0.5,
        order=np.arange(-2, 24).clip(-1),
        jitter=np.concatenate([draws.uniform(0.5, 1.5, (num, 3)), draws.uniform(-0.5, 0.5, (num, 1))], axis=1).astype(
            np.float32
        ),
        gray=draws.random(num) < 0.2,
        sigma=np.where(draws.random(num) < 0.5, draws.uniform(0.1, 2, num), 0).astype(np.float32),
        solarize=draws.random(num) < 0.3,
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = kernels.recolour(crops.to(DEVICE), changes, mean, std).cpu()
    expected = colour.recolour(crops, changes, mean, std)
    assert torch.allclose(found, expected, atol=1e-3)
    beside = crops.to(DEVICE, memory_format=torch.channels_last)
    assert torch.equal(kernels.recolour(beside, changes, mean, std).cpu(), found)
    half = kernels.recolour(crops.to(DEVICE), changes, mean, std, torch.bfloat16).cpu()
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=1e-3, rtol=2**-7)


def test_nothing_to_colour() -> None:
    none = np.zeros(0, np.float32)
    changes = colour.Changes(none > 0, none.astype(int), np.zeros((0, 4), np.float32), none > 0, none, none > 0)
    assert kernels.recolour(torch.zeros(0, 3, 8, 8, dtype=torch.uint8, device=DEVICE), changes).shape == (0, 3, 8, 8)
