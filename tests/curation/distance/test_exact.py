import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.distance.exact import for_products


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(-30, 30), st.integers(0, 1000))
def test_products_are_the_same_in_any_order(dim: int, scale: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    vectors = for_products(torch.randn(4, dim, generator=draws) * 2.0**scale)
    order = torch.randperm(dim, generator=draws)
    backwards = np.array([[np.cumsum((one * two)[order].numpy())[-1] for one in vectors] for two in vectors])
    assert np.array_equal((vectors @ vectors.T).numpy(), backwards)


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(-30, 30), st.integers(0, 1000))
def test_little_is_rounded_away(dim: int, scale: int, seed: int) -> None:
    vectors = torch.randn(4, dim, generator=torch.Generator().manual_seed(seed)).double() * 2.0**scale
    error = (for_products(vectors) - vectors).abs().amax(1)
    assert (error <= vectors.abs().amax(1) * 2.0**-19).all()


def test_zeros_stay_zeros() -> None:
    assert for_products(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
