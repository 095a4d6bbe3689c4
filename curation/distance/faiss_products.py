"""Scores computed by faiss: its exact index, on the CPU or spread over all GPUs of the machine."""

import torch
from torch import Tensor

from curation.base.errors import ConfigError
from curation.distance.products import Coarse, FullProducts


class FaissProducts(FullProducts):
    """The two nearest centroids found by faiss, and candidates for an exact comparison found by torch."""

    def __init__(self, centroids: Tensor, origin: Tensor) -> None:
        super().__init__(centroids, origin)
        try:
            import faiss
        except ImportError:
            raise ConfigError(
                "The faiss engine is not installed. Run `pip install 'windrow[cpu]'`, or windrow[gpu] for GPUs, never both; "
                "or leave out engine=faiss."
            ) from None
        flat = faiss.IndexFlatL2(centroids.shape[1])
        self._index = faiss.index_cpu_to_all_gpus(flat) if faiss.get_num_gpus() else flat
        self._index.add(self._centroids.cpu().numpy())
        self.block_rows = 2**16

    def nearest(self, rows: Tensor) -> Coarse:
        centred = rows.float() - self._origin
        squared_by_faiss, indices = self._index.search(centred.cpu().numpy(), min(2, len(self._centroids)))
        squared, label = (torch.from_numpy(array).to(rows.device) for array in (squared_by_faiss, indices))
        length = torch.linalg.vector_norm(centred, dim=1)
        # faiss adds |x|², which rounds once more; without it these are the scores that `candidates` compares with its limit.
        scores = squared - (length * length)[:, None]
        second = scores[:, 1] if scores.shape[1] > 1 else torch.full_like(scores[:, 0], torch.inf)
        error = (length + self._farthest).square() * (2 * self._unit)
        return Coarse(label[:, 0].clone(), scores[:, 0], second, error)
