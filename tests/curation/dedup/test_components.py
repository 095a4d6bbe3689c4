from pathlib import Path

import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.dedup.components import components

EDGES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


@given(EDGES, st.integers(1, 7))
def test_components_are_those_of_the_graph_however_edges_arrive(edges: list[tuple[int, int]], piece: int) -> None:
    graph = networkx.Graph()
    graph.add_nodes_from(range(30))
    graph.add_edges_from(edges)
    expected = np.empty(30, dtype=int)
    for component in networkx.connected_components(graph):
        expected[list(component)] = min(component)
    table = np.array(edges, dtype=np.int64).reshape(-1, 2)
    pieces = [(table[i : i + piece, 0], table[i : i + piece, 1]) for i in range(0, len(table), piece)]
    assert np.array_equal(components(30, pieces), expected)


def test_the_forest_can_lie_on_disk(tmp_path: Path) -> None:
    edges = [(np.array([5, 9]), np.array([7, 5]))]
    result = components(12, edges, scratch=tmp_path / "forest")
    assert isinstance(result, np.memmap)
    assert result.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 8, 5, 10, 11]
    assert len(components(0, [], scratch=tmp_path / "none")) == 0
