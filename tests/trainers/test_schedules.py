import pytest

from trainers.schedules import cosine, linear, warmup_cosine


def test_schedules_by_hand() -> None:
    assert cosine(0, 10, 1, 3) == 1
    assert cosine(5, 10, 1, 3) == pytest.approx(2)
    assert cosine(12, 10, 1, 3) == 3
    assert linear(5, 20, 0, 1) == 0.25
    assert linear(3, 0, 0.04, 0.07) == 0.07
    assert warmup_cosine(0, 100, 10, 2, 0) == 0
    assert warmup_cosine(5, 100, 10, 2, 0) == 1
    assert warmup_cosine(10, 100, 10, 2, 0) == 2
    assert warmup_cosine(100, 100, 10, 2, 0.5) == 0.5
