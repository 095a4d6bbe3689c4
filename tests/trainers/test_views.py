import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from trainers import views
from trainers.config import ViewsConfig

PLAIN = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": (0, 0, 0), "solarize": (0, 0, 0)}


def images(num: int = 6, side: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def recolour(batch: torch.Tensor, **settings: object) -> torch.Tensor:
    config = ViewsConfig.model_validate({**PLAIN, **settings})
    draws = views.Draws.of(config, np.arange(len(batch)), stream=1)
    return views.colour(config, batch[None], draws, 0)[0]


def test_nothing_asked_nothing_done() -> None:
    assert torch.equal(recolour(images()), images().float() / 255)


def test_flip_grayscale_and_solarize_are_those_of_torchvision() -> None:
    batch = images()
    whole = batch.float() / 255
    assert torch.equal(recolour(batch, flip=1), reference.hflip(whole))
    assert torch.allclose(recolour(batch, grayscale=1), reference.rgb_to_grayscale(whole, 3), atol=2e-3)
    assert torch.allclose(recolour(batch, solarize=(1, 0, 0)), reference.solarize(whole, 0.5), atol=1e-6)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_is_that_of_torchvision(name: str) -> None:
    batch = images().float() / 255
    amount = torch.zeros(6, 4)
    index = ["brightness", "contrast", "saturation", "hue"].index(name)
    amount[:, index] = torch.tensor([-0.4, -0.1, 0.0, 0.05, 0.3, 0.5])
    found = views._jitter(batch, amount)
    adjust = getattr(reference, f"adjust_{name}")
    for image, value, ours in zip(batch, amount[:, index], found, strict=True):
        expected = adjust(image, float(value) if name == "hue" else 1 + float(value))
        assert torch.allclose(ours, expected, atol=5e-3)


def test_blur_is_that_of_torchvision() -> None:
    batch = images().float() / 255
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 0.3])
    for image, value, ours in zip(batch, sigma, views._blur(batch, sigma), strict=True):
        assert torch.allclose(ours, reference.gaussian_blur(image, [13, 13], [float(value)] * 2), atol=1e-4)


@pytest.mark.parametrize("size", [(300, 400), (32, 32), (50, 300)])
def test_boxes_are_distributed_like_random_resized_crop(size: tuple[int, int]) -> None:
    config = ViewsConfig(num_local=0, global_scale=(0.2, 0.9))
    num = 4000
    draws = views.Draws.of(config, np.arange(num), stream=5)
    ours = np.stack([views.boxes(config, numbers, *size)[0] for numbers in draws.numbers])
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 0.9], [3 / 4, 4 / 3]) for _ in range(num)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for column in range(4):  # Kolmogorov-Smirnov, far from the 0.1 % bound of 0.044
        grid = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        cumulative = [np.searchsorted(np.sort(x[:, column]), grid, side="right") / num for x in (ours, theirs)]
        assert np.abs(cumulative[0] - cumulative[1]).max() < 0.044


def test_how_often_each_thing_happens() -> None:
    config = ViewsConfig(num_local=1, flip=0.5, jitter=0, grayscale=0.2, blur=(0, 0, 0), solarize=(0, 0.3, 0), global_size=8)
    num = 3000
    left = torch.zeros(2, num, 3, 8, 8, dtype=torch.uint8)
    left[:, :, 0, :, :4] = 255
    out = views.colour(config, left, views.Draws.of(config, np.arange(num), stream=2), 0)
    flipped = (out[0, :, :, 0, 0] - out[0, :, :, 0, 7]).sum(1) < 0
    assert abs(float(flipped.float().mean()) - 0.5) < 0.04
    gray = (out[0, :, 0] - out[0, :, 1]).abs().amax((1, 2)) < 1e-6
    assert abs(float(gray.float().mean()) - 0.2) < 0.03
    # Solarising turns the bright red half black; graying (a fifth of the time) already dims it below the threshold.
    dim = out[1].amax((1, 2, 3)) < 0.9
    assert abs(float(dim.float().mean()) - 0.3 * 0.8 - 0.2) < 0.05


def test_views_belong_to_the_sample_and_not_to_the_batch() -> None:
    config = ViewsConfig(num_local=2)
    together = views.Draws.of(config, np.array([3, 99, 7]), stream=1).numbers
    alone = views.Draws.of(config, np.array([99]), stream=1).numbers
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(together[1, 0], together[1, 1])


def test_crops_have_their_sizes_and_keep_the_picture() -> None:
    config = ViewsConfig(num_local=3, global_size=16, local_size=8, global_scale=(1, 1))
    picture = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (32, 32, 3)).copy()
    numbers = views.Draws.of(config, np.array([0]), stream=1).numbers[0]
    large, small = views.crops(config, picture, numbers)
    assert large.shape == (2, 3, 16, 16)
    assert small.shape == (3, 3, 8, 8)
    assert (np.diff(large[0, 0, :, 0].int()) >= 0).all()
