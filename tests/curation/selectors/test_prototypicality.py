from typing import Literal

import numpy as np
import pytest
from hypothesis import settings

from curation.selectors.config import PrototypicalityConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool
from tests.curation.selectors.helpers import check_promises, hierarchy, one_cluster, promises


@settings(max_examples=30)
@promises
def test_promises(kind: str, num: int, seed: int, budget: int) -> None:
    check_promises(PrototypicalityConfig(budget=budget), kind, num, seed)
    check_promises(PrototypicalityConfig(budget=budget, keep="easy"), kind, num, seed)


@pytest.mark.parametrize("keep", ["easy", "hard"])
@pytest.mark.parametrize("budget", [1, 40, 199, 200])
def test_rows_are_ranked_over_the_whole_pool(keep: Literal["easy", "hard"], budget: int) -> None:
    tree = hierarchy(300)
    available = np.arange(300) % 3 > 0
    distance = tree.levels[0].squared_distance
    ranked = sorted(np.flatnonzero(available), key=lambda row: distance[row], reverse=keep == "hard")
    selection = select(PrototypicalityConfig(budget=budget, keep=keep), Pool(hierarchy=tree, available=available), rng_key=1)
    assert selection.rows.tolist() == sorted(ranked[:budget])


@pytest.mark.parametrize(("keep", "expected"), [("easy", [0, 2, 4, 5]), ("hard", [0, 1, 3, 6])])
def test_of_equally_far_rows_the_first_are_taken(keep: Literal["easy", "hard"], expected: list[int]) -> None:
    tree = one_cluster(np.array([[2], [3], [0], [3], [1], [2], [3], [2]]))
    before = tree.levels[0].squared_distance.copy()
    selection = select(PrototypicalityConfig(budget=4, keep=keep), Pool(hierarchy=tree), rng_key=1)
    assert selection.rows.tolist() == expected
    assert np.array_equal(tree.levels[0].squared_distance, before)
