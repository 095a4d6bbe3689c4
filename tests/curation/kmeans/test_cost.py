import pytest

from curation.kmeans.config import ClusterConfig
from curation.kmeans.cost import costs, suggested


def test_suggestions_are_in_the_proportions_of_the_paper() -> None:
    paper = (10_000_000, 500_000, 50_000, 10_000)
    config = suggested(743_000_000)
    assert config.splits == 100
    assert len(config.levels) >= 4
    assert config.levels[:4] == pytest.approx(paper, rel=0.02)


@pytest.mark.parametrize("num_rows", [1, 100, 3000, 50_000, 12_345_678, 17 * 10**9])
def test_suggestions_are_valid_for_any_number_of_rows(num_rows: int) -> None:
    config = suggested(num_rows)
    assert all(level.flops > 0 and level.num_bytes > 0 for level in costs(config, num_rows, 256))


def test_costs_grow_with_the_work() -> None:
    base = costs(ClusterConfig(levels=(1000, 100)), 10**6, 256)
    assert base[0].num_resampled == 500
    assert base[1].num_items == 1000
    assert base[1].num_resampled == 5
    assert costs(ClusterConfig(levels=(1000, 100)), 2 * 10**6, 256)[0].flops == pytest.approx(2 * base[0].flops, rel=0.01)
    assert costs(ClusterConfig(levels=(1000, 100), splits=10), 10**6, 256)[0].flops < base[0].flops / 8
    four = costs(ClusterConfig(levels=(1000, 100), workers=4), 10**6, 256, resident=True)
    one = costs(ClusterConfig(levels=(1000, 100)), 10**6, 256, resident=True)
    assert four[0].num_bytes < one[0].num_bytes / 3
