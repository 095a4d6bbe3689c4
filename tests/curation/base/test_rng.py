import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.base import rng


@pytest.mark.parametrize(
    ("rng_key", "counter", "expected"),
    [  # the known answers that Random123 ships for philox4x32-10
        (0, [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (2**64 - 1, [0xFFFFFFFF] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(rng_key: int, counter: list[int], expected: list[int]) -> None:
    assert rng.philox(rng_key, np.array([counter], dtype=np.uint32)).tolist() == [expected]


def test_draws_depend_on_the_row_and_not_on_its_company() -> None:
    rows = np.array([7, 2**40, 0])
    together = rng.uniform(3, rows, 6)
    for row, draws in zip(rows, together, strict=True):
        assert np.array_equal(rng.uniform(3, np.array([row]), 6)[0], draws)
    assert np.array_equal(rng.uniform(3, rows, 2), together[:, :2])


def test_uniform_is_uniform() -> None:
    draws = rng.uniform(1, np.arange(20_000), 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T])
    assert (np.abs(histogram - 1000) < 6 * np.sqrt(950)).all()
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03


def test_keys_tell_words_from_numbers_and_order() -> None:
    assert len({rng.key(1, 2), rng.key(2, 1), rng.key("1", 2), rng.key(12), rng.key("12"), rng.key(1, "2")}) == 6


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_position_by_position(size: int, rng_key: int) -> None:
    whole = rng.permute(rng_key, np.arange(size), size)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert rng.permute(rng_key, np.array([size // 2]), size)[0] == whole[size // 2]


def test_permute_shuffles() -> None:
    order = rng.permute(9, np.arange(10_000), 10_000)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert not np.array_equal(order, rng.permute(10, np.arange(10_000), 10_000))


def test_permute_refuses_positions_outside() -> None:
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        rng.permute(0, np.array([5]), 5)


@given(st.integers(0, 100), st.integers(0, 50), st.integers(0, 2**63))
def test_a_row_has_the_same_ticket_in_any_range(first: int, num: int, rng_key: int) -> None:
    whole = rng.tickets(rng_key, 0, 200)
    assert np.array_equal(rng.tickets(rng_key, first, num), whole[first : first + num])


@pytest.mark.parametrize("size", [1, 2, 3, 50, 1000])
def test_permute_each_keeps_many_permutations_apart(size: int) -> None:
    which = np.repeat(np.arange(20) + 2**40, size)
    positions = np.tile(np.arange(size), 20)
    permuted = rng.permute_each(3, which, positions, np.full(20 * size, size)).reshape(20, size)
    assert all(sorted(row) == list(range(size)) for row in permuted.tolist())
    assert size < 50 or len({tuple(row) for row in permuted.tolist()}) == 20
    mixed = rng.permute_each(3, np.append(which, 1), np.append(positions, 4), np.append(np.full(20 * size, size), 9))
    assert mixed[:-1].tolist() == permuted.ravel().tolist()
    with pytest.raises(ValueError, match="below its size"):
        rng.permute_each(3, np.array([0]), np.array([5]), np.array([5]))
