import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from trainers.data import colour, views
from trainers.data.config import ViewsConfig
from trainers.data.decoding import Window, decode, decode_window


def images(num: int = 6, side: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changes(num: int, **given: object) -> colour.Changes:
    nothing = {
        "flip": np.zeros(num, bool),
        "order": np.full(num, -1),
        "jitter": np.tile(np.array([1, 1, 1, 0], np.float32), (num, 1)),
        "gray": np.zeros(num, bool),
        "sigma": np.zeros(num, np.float32),
        "solarize": np.zeros(num, bool),
    }
    return colour.Changes(**{**nothing, **given})  # type: ignore[arg-type]


def test_nothing_asked_nothing_done() -> None:
    assert torch.allclose(colour.recolour(images(), changes(6)), images().float() / 255, atol=1e-6)


def test_flip_grayscale_solarize_and_normalise_are_those_of_torchvision() -> None:
    batch, every = images(), np.ones(6, bool)
    whole = batch.float() / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for ours, theirs in [
        (colour.recolour(batch, changes(6, flip=every)), reference.hflip(whole)),
        (colour.recolour(batch, changes(6, gray=every)), reference.rgb_to_grayscale(whole, 3)),
        (colour.recolour(batch, changes(6, solarize=every)), reference.solarize(whole, 0.5)),
        (colour.recolour(batch, changes(6), mean, std), reference.normalize(whole, mean, std)),
    ]:
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_jitter_is_that_of_torchvision_in_each_of_its_orders() -> None:
    batch = images(24)
    batch[0], batch[1, :, :5], batch[2, 1] = 7, 0, batch[2, 0]  # no hue, black, and two channels alike
    draws = np.random.default_rng(0)
    amount = np.concatenate([draws.uniform(0.4, 1.6, (24, 3)), draws.uniform(-0.5, 0.5, (24, 1))], axis=1).astype(np.float32)
    found = colour.recolour(batch, changes(24, order=np.arange(24), jitter=amount))
    adjust = [getattr(reference, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")]
    for number, image in enumerate(batch.float() / 255):
        for kind in colour.ORDERS[number]:
            image = adjust[kind](image, float(amount[number, kind]))
        assert torch.allclose(found[number], image, atol=1e-4)


def test_blur_is_that_of_torchvision() -> None:
    sigma = np.array([0.1, 0.5, 1.0, 1.5, 2.0, 0.3], np.float32)
    found = colour.recolour(images(), changes(6, sigma=sigma))
    for image, value, ours in zip(images().float() / 255, sigma.tolist(), found, strict=True):
        assert torch.allclose(ours, reference.gaussian_blur(image, [9, 9], [value, value]), atol=1e-4)


def test_factors_and_orders_are_drawn_as_torchvision_draws_them() -> None:
    config = ViewsConfig(num_local=0, jitter=0.8, brightness=0.4, hue=0.1)
    num = 5000
    found = views.Draws.of(config, np.arange(num), rng_key=3).changes(config, 0, 1)
    jittered = found.order >= 0
    assert abs(jittered.mean() - 0.8) < 0.025
    assert np.bincount(found.order[jittered]).min() > 0.7 * 0.8 * num / 24
    theirs = [ColorJitter.get_params((0.6, 1.4), None, None, (-0.1, 0.1)) for _ in range(num)]
    assert ks(found.jitter[:, 0], np.array([drawn[1] for drawn in theirs])) < 0.039
    assert ks(found.jitter[:, 3], np.array([drawn[4] for drawn in theirs])) < 0.039
    assert found.sigma.min() >= 0.1
    assert found.sigma.max() < 2


def ks(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic; 0.039 and 0.044 are its 0.1 % bounds for twice 5,000 and 4,000 draws."""
    grid = np.unique(np.concatenate([ours, theirs]))
    return float(np.abs(np.subtract(*(np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (ours, theirs)))).max())


@pytest.mark.parametrize("size", [(300, 400), (32, 32), (50, 300)])
def test_boxes_are_distributed_like_random_resized_crop(size: tuple[int, int]) -> None:
    config = ViewsConfig(num_local=0, global_scale=(0.2, 0.9))
    num = 4000
    draws = views.Draws.of(config, np.arange(num), rng_key=5)
    ours = np.stack([draws.boxes(sample, *size)[0] for sample in range(num)])
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 0.9], [3 / 4, 4 / 3]) for _ in range(num)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for column in range(4):
        assert ks(ours[:, column], theirs[:, column]) < 0.044
    assert ks(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 0.044
    assert ks(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]) < 0.044


def test_how_often_each_thing_happens() -> None:
    config = ViewsConfig(num_local=1, flip=0.5, jitter=0, grayscale=0.2, blur=(0, 0, 0), solarize=(0, 0.3, 0), global_size=8)
    num = 3000
    left = torch.zeros(2, num, 3, 8, 8, dtype=torch.uint8)
    left[:, :, 0, :, :4] = 255
    out = views.colour(config, left, views.Draws.of(config, np.arange(num), rng_key=2), 0)
    flipped = (out[0, :, :, 0, 0] - out[0, :, :, 0, 7]).sum(1) < 0
    assert abs(float(flipped.float().mean()) - 0.5) < 0.04
    gray = (out[0, :, 0] - out[0, :, 1]).abs().amax((1, 2)) < 1e-6
    assert abs(float(gray.float().mean()) - 0.2) < 0.03
    # Solarising turns the bright red half black; graying (a fifth of the time) already dims it below the threshold.
    dim = out[1].amax((1, 2, 3)) < 0.9
    assert abs(float(dim.float().mean()) - 0.3 * 0.8 - 0.2) < 0.05


def test_views_belong_to_the_sample_and_not_to_the_batch() -> None:
    config = ViewsConfig(num_local=2)
    together = views.Draws.of(config, np.array([3, 99, 7]), rng_key=1).numbers
    alone = views.Draws.of(config, np.array([99]), rng_key=1).numbers
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(together[1, 0], together[1, 1])


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def cut(config: ViewsConfig, content: bytes, sample: int = 0) -> list[torch.Tensor]:
    sizes = [config.global_size] * config.num_global + [config.local_size] * config.num_local
    crops = [np.empty((size, size, 3), dtype=np.uint8) for size in sizes]
    assert not views.cut({0: content}, views.Draws.of(config, np.array([sample]), rng_key=1), {0: crops})
    return [torch.from_numpy(crop.transpose(2, 0, 1)) for crop in crops]


def test_crops_are_cut_and_scaled_as_torchvision_does() -> None:
    config = ViewsConfig(num_local=3, global_size=64, local_size=32)
    content = encoded(smooth(90, 120))
    whole = torch.from_numpy(decode(content)).permute(2, 0, 1)
    for sample in range(5):
        boxes = views.Draws.of(config, np.array([sample]), rng_key=1).boxes(0, 90, 120)
        for crop, box in zip(cut(config, content, sample), boxes.tolist(), strict=True):
            expected = reference.resized_crop(whole, *box, size=list(crop.shape[1:]), antialias=True)
            assert (crop.int() - expected.int()).abs().max() <= 1


def test_samples_are_cut_together_as_each_by_itself() -> None:
    config = ViewsConfig(num_local=1, global_size=32, local_size=16)
    sizes = [(90, 120), (40, 33), (700, 1200), (1, 1), (33, 200)]
    contents = {7 + number: encoded(smooth(*size)) for number, size in enumerate(sizes)}
    contents |= {3: contents[8][:90], 20: encoded(smooth(50, 70), "PNG"), 21: encoded(smooth(50, 70))[:400]}
    draws = views.Draws.of(config, np.arange(30), rng_key=1)

    def crops(*samples: int) -> dict[int, list[np.ndarray]]:
        return {sample: [np.zeros((size, size, 3), np.uint8) for size in (32, 32, 16)] for sample in samples}

    together = crops(*contents)
    assert views.cut(contents, draws, together).keys() == {3, 21}
    for sample, content in contents.items():
        alone = crops(sample)
        views.cut({sample: content}, draws, alone)
        assert all(np.array_equal(*pair) for pair in zip(together[sample], alone[sample], strict=True))
        assert alone[sample][0].any() == (sample not in (3, 21))


@pytest.mark.parametrize("size", [(90, 120), (600, 401), (1500, 2000)])
def test_what_lies_around_all_crops_is_not_decoded(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    config = ViewsConfig(num_global=2, num_local=0, global_size=32, global_scale=(0.08, 0.1))
    content = encoded(smooth(*size), restart_marker_blocks=1)
    found = [cut(config, content, sample) for sample in range(20)]
    decoded = []

    def whole(content: bytes, box: tuple[int, int, int, int], reduction: int) -> Window:
        decoded.append(decode_window(content, box, reduction).pixels.size * reduction**2 / (3 * math.prod(size)))
        return decode_window(encoded(smooth(*size)), box, reduction)

    monkeypatch.setattr(views, "decode_window", whole)
    for sample, crops in enumerate(found):
        assert all(torch.equal(*pair) for pair in zip(crops, cut(config, content, sample), strict=True))
    assert np.mean(decoded) < 0.6


def test_a_large_jpeg_is_decoded_small_only_if_no_crop_wants_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViewsConfig(num_local=2, global_size=64, local_size=32)
    reductions = []
    monkeypatch.setattr(views, "decode_window", lambda *wanted: reductions.append(wanted[2]) or decode_window(*wanted))
    for height, width in [(90, 120), (300, 401), (1500, 2001)]:
        content = encoded(smooth(height, width))
        whole = torch.from_numpy(decode(content)).permute(2, 0, 1)
        for sample in range(8):
            boxes = views.Draws.of(config, np.array([sample]), rng_key=1).boxes(0, height, width)
            found = cut(config, content, sample)
            for crop, box in zip(found, boxes.tolist(), strict=True):
                assert min(box[2:]) / reductions[-1] >= crop.shape[1] or reductions[-1] == 1
                expected = reference.resized_crop(whole, *box, size=list(crop.shape[1:]), antialias=True)
                assert (crop.float() - expected.float()).abs().mean() < 4  # boxes go to whole pixels of the small image
    assert set(reductions[:8]) == {1}
    assert min(reductions[16:]) >= 4
