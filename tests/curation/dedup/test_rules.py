import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.dedup.rules import Rule, drop, leaks

EDGES = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda e: e[0] != e[1]), max_size=30)


def literal(edges: list[tuple[int, int]], priority: np.ndarray, rule: Rule) -> dict[int, set[int]]:
    """Each dropped row with the rows it may be dropped for, by the rule's definition."""
    order = sorted(range(15), key=lambda row: (priority[row], row))
    beside = {row: {b for a, b in edges if a == row} | {a for a, b in edges if b == row} for row in range(15)}
    dropped: dict[int, set[int]] = {}
    for place, row in enumerate(order):
        before = set(order[:place])
        if rule == "greedy" and beside[row] & before:
            dropped[row] = beside[row] & before
        if rule == "star" and beside[row] & (before - set(dropped)):
            dropped[row] = beside[row] & (before - set(dropped))
        if rule == "component":
            reached, new = {row}, {row}
            while new := set().union(*(beside[r] for r in new)) - reached:
                reached |= new
            if best := reached & before - set(dropped):
                dropped[row] = best
    return dropped


@pytest.mark.parametrize("rule", ["component", "greedy", "star"])
@given(edges=EDGES, priority=st.lists(st.integers(0, 5), min_size=15, max_size=15))
def test_what_is_dropped_is_what_the_rule_says(rule: Rule, edges: list[tuple[int, int]], priority: list[int]) -> None:
    table = np.array(edges, dtype=np.int64).reshape(-1, 2)
    gone, reason = drop(table[:, 0], table[:, 1], np.array(priority), rule)
    expected = literal(edges, np.array(priority), rule)
    assert gone.tolist() == sorted(expected)
    for row, why in zip(gone, reason, strict=True):
        assert why in expected[row]


def test_a_chain_is_joined_by_components_and_not_by_stars() -> None:
    first, second = np.arange(9), np.arange(1, 10)
    assert drop(first, second, np.zeros(10), "component")[0].tolist() == list(range(1, 10))
    assert drop(first, second, np.zeros(10), "star")[0].tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("rule", ["component", "greedy", "star"])
@given(
    edges=EDGES,
    priority=st.lists(st.integers(0, 5), min_size=15, max_size=15),
    copies=st.lists(st.integers(0, 14), min_size=15, max_size=15),
)
def test_equal_rows_share_their_edges(rule: Rule, edges: list[tuple[int, int]], priority: list[int], copies: list[int]) -> None:
    """Rows with the same number in `copies` are equal; each is joined to the first of them only, and edges to one suffice."""
    groups = {number: [row for row in range(15) if copies[row] == number] for number in copies}
    joined = [(members[0], other) for members in groups.values() for other in members[1:]]
    between = [(a, b) for a, b in edges if copies[a] != copies[b]]
    table = np.array(joined + between, dtype=np.int64).reshape(-1, 2)
    same = np.arange(len(table)) < len(joined)
    gone, _ = drop(table[:, 0], table[:, 1], np.array(priority), rule, same=same)
    spread = [(a, b) for x, y in between for a in groups[copies[x]] for b in groups[copies[y]]]
    spread += [(a, b) for members in groups.values() for a in members for b in members if a < b]
    assert gone.tolist() == sorted(literal(spread, np.array(priority), rule))


@given(edges=EDGES, copies=st.lists(st.integers(0, 14), min_size=15, max_size=15), held=st.integers(0, 15))
def test_what_is_near_a_held_out_row_leaks(edges: list[tuple[int, int]], copies: list[int], held: int) -> None:
    groups = {number: [row for row in range(15) if copies[row] == number] for number in copies}
    joined = [(members[0], other) for members in groups.values() for other in members[1:]]
    between = [(a, b) for a, b in edges if copies[a] != copies[b]]
    table = np.array(joined + between, dtype=np.int64).reshape(-1, 2)
    rows, reason = leaks(table[:, 0], table[:, 1], held, same=np.arange(len(table)) < len(joined))
    near = {(a, b) for x, y in between for a in groups[copies[x]] for b in groups[copies[y]]}
    near |= {(a, b) for members in groups.values() for a in members for b in members}
    near |= {(b, a) for a, b in near}
    expected = {row: min(other for a, other in near if a == row and other >= held) for row in range(held)
                if any(a == row and other >= held for a, other in near)}  # fmt: skip
    assert dict(zip(rows.tolist(), reason.tolist(), strict=True)) == expected
