"""Small data sets: images of one size, decoded once and kept on the device, where crops are cut for whole batches."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trainers.data.samples import BadSampleError, SampleList
from trainers.data.shard_reader import ShardReader
from trainers.tensor_memory import to_device

_CHUNK = 256


class ResidentImages:
    """All images of a list, decoded."""

    def __init__(self, pixels: Tensor, bad: dict[int, BadSampleError]) -> None:
        self.pixels = pixels
        """(N, 3, H, W) uint8 on the device."""
        self.bad = bad
        """The errors of the samples that cannot be read, by index; their pixels are black."""

    @classmethod
    def of(cls, samples: SampleList, max_bytes: int, device: torch.device, threads: int) -> "ResidentImages | None":
        """Decode `samples` if they all have one size and take at most `max_bytes`; else return None, early."""
        if len(samples) * 3 > max_bytes:  # not even one pixel of each fits, which is known without decoding
            return None
        reader = ShardReader(samples)
        bad: dict[int, BadSampleError] = {}

        def image(index: int) -> np.ndarray | None:
            try:
                return reader.image(index)
            except BadSampleError as error:
                bad[index] = error
                return None

        first = next((pixels for pixels in map(image, range(len(samples))) if pixels is not None), None)
        if first is None or len(samples) * first.nbytes > max_bytes:
            return None
        decoded = np.zeros((len(samples), *first.shape), dtype=np.uint8)
        with ThreadPoolExecutor(threads, "decode") as pool:
            for start in range(0, len(samples), _CHUNK):
                chunk = range(start, min(start + _CHUNK, len(samples)))
                reader.ahead(chunk)
                for index, pixels in zip(chunk, pool.map(image, chunk), strict=True):
                    if pixels is None:
                        continue
                    if pixels.shape != first.shape:
                        return None
                    decoded[index] = pixels
        return cls(torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().to(device), bad)

    def raise_if_bad(self, index: int) -> None:
        """Raise BadSampleError if that sample cannot be read."""
        if index in self.bad:
            raise self.bad[index]

    def cut(self, indices: np.ndarray, boxes: np.ndarray, size: int) -> Tensor:
        """Cut `boxes` (B, V, 4), as top, left, height, width, out of the images at `indices` (B,): (V, B, 3, size, size) uint8.

        Scaled antialiased and bilinear, as torchvision does. A crop is its image between two small matrices, one for the rows
        and one for the columns, so all crops of a batch are two batched products.
        """
        device = self.pixels.device
        images = self.pixels[to_device(device, indices)].float()
        top, left, height, width = to_device(device, boxes).float().permute(2, 1, 0)
        rows, columns = _scaling(top, height, images.shape[2], size), _scaling(left, width, images.shape[3], size)
        return (rows[:, :, None] @ images @ columns[:, :, None].mT).round_().to(torch.uint8)


def _scaling(first: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """(…, size, whole): the weight of each of `whole` source pixels in a line in each of `size` scaled pixels.

    The scaled pixels show the stretch of `length` source pixels from `first` on, both (…). The filter is a triangle as wide as
    a pixel of the coarser grid.
    """
    pixel = torch.arange(whole, device=first.device) + 0.5
    scale, first, length = (x[..., None, None] for x in (length / size, first, length))
    centre = first + (torch.arange(size, device=first.device)[:, None] + 0.5) * scale
    weight = (1 - (pixel - centre).abs() / scale.clamp_min(1)).clamp_min(0) * ((pixel > first) & (pixel < first + length))
    return weight / weight.sum(-1, keepdim=True)
