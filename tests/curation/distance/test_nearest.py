import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from curation.base.device import default_device
from curation.base.errors import ConfigError
from curation.distance import nearest as distance
from curation.distance.faiss_products import FaissProducts
from curation.distance.kernels import HalfProducts
from curation.distance.nearest import NearestCentroid, squared_distance
from curation.distance.products import Coarse, FullProducts, Products

DEVICE = default_device()
PRODUCTS = [FullProducts, HalfProducts, FaissProducts]


def tangled(num: int, dim: int, dtype: torch.dtype, *, apart: float, away: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows, and centroids in pairs that are so close that products mistake one for the other."""
    draws = np.random.default_rng(0)
    rows = torch.from_numpy(draws.normal(away, 1, (num, dim)).astype(np.float32)).to(dtype)
    half = draws.normal(away, 1, (num // 4, dim))
    pairs = np.concatenate([half, half + apart * draws.normal(0, 1, half.shape)])
    return rows.to(DEVICE), torch.from_numpy(pairs.astype(np.float32)).to(DEVICE)


def exact(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Label and margin by float64 differences, literally."""
    squared = (rows.double()[:, None] - centroids.double()).square().sum(2)
    two = squared.topk(2, largest=False).values
    return squared.argmin(1), two[:, 1] - two[:, 0]


def search(products: type, centroids: Tensor) -> NearestCentroid:
    origin = centroids.mean(0)
    nearest = NearestCentroid(centroids, origin)
    nearest._products = products(centroids, origin)
    return nearest


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("apart", "away"), [(1e-6, 0.0), (1e-3, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize("dim", [5, 48])
def test_labels_are_those_of_float64(products: type, dtype: torch.dtype, apart: float, away: float, dim: int) -> None:
    rows, centroids = tangled(200, dim, dtype, apart=apart, away=away)
    label, margin = exact(rows, centroids)
    nearest = search(products, centroids)(rows)
    assert torch.equal(nearest.label, label)
    error = products(centroids, centroids.mean(0)).nearest(rows).error
    assert ((nearest.margin - margin).abs() <= 2 * error + 1e-6 * margin).all()
    assert torch.allclose(squared_distance(rows, centroids, label), (rows - centroids[label]).square().sum(1), rtol=1e-5)


@pytest.mark.parametrize(("products", "apart"), [(FullProducts, 1e-6), (HalfProducts, 1e-3)])
def test_the_product_alone_would_be_wrong(products: type, apart: float) -> None:
    rows, centroids = tangled(200, 48, torch.float32, apart=apart)
    label, _ = exact(rows, centroids)
    assert (products(centroids, centroids.mean(0)).nearest(rows).label != label).any()


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_no_score_errs_by_more_than_is_said(products: type, scale: float) -> None:
    rows, centroids = tangled(200, 48, torch.float16, apart=1.0)
    rows, centroids = (rows * scale).half(), centroids * scale
    coarse: Coarse = products(centroids, centroids.mean(0)).nearest(rows)
    squared = (rows.double()[:, None] - centroids.double()).square().sum(2)
    two = squared.topk(2, largest=False).values
    error = ((coarse.second - coarse.best).double() - (two[:, 1] - two[:, 0])).abs() / 2
    assert (error <= coarse.error).all()
    assert (coarse.error < 0.05 * two[:, 0]).all()  # a bound that says nothing would pass too


@pytest.mark.parametrize("products", PRODUCTS)
def test_candidates_are_all_within_the_limit_however_little_room_there_is(
    products: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.distance.kernels._CANDIDATES_PER_ROW", 1)
    rows, centroids = tangled(200, 5, torch.float16, apart=1e-3)
    made: Products = products(centroids, centroids.mean(0))
    coarse = made.nearest(rows)
    limit = coarse.best + 1.0
    row, centroid = made.candidates(rows, limit)
    squared = (rows.double()[:, None] - centroids.double()).square().sum(2)
    above = squared - squared.amin(1, keepdim=True)
    is_candidate = torch.zeros_like(squared, dtype=torch.bool)
    is_candidate[row, centroid] = True
    slack = 2 * coarse.error[:, None]
    assert is_candidate[above <= 1.0 - slack].all()
    assert not is_candidate[above > 1.0 + slack].any()


@pytest.mark.parametrize("products", PRODUCTS)
def test_of_equal_centroids_the_first_and_of_one_an_infinite_margin(products: type) -> None:
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    twice = search(products, torch.ones(3, 4, device=DEVICE))(rows)
    assert twice.label.tolist() == [0] * 10
    assert twice.margin.tolist() == [0.0] * 10
    alone = search(products, torch.ones(1, 4, device=DEVICE))(rows)
    assert alone.label.tolist() == [0] * 10
    assert alone.margin.isinf().all()


def test_pairs_to_compare_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centroids = tangled(200, 5, torch.float32, apart=1e-6)
    whole = search(FullProducts, centroids)(rows)
    monkeypatch.setattr(distance, "_PAIRS", 35)
    pieces = search(FullProducts, centroids)(rows)
    assert torch.equal(whole.label, pieces.label)
    assert torch.equal(whole.margin, pieces.margin)


def test_a_missing_faiss_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="windrow\\[cpu\\]"):
        NearestCentroid(torch.ones(2, 3), engine="faiss")
