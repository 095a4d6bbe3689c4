import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from launch.report.page import write
from tests.launch.report.runs import copy_of, words

pytestmark = pytest.mark.xdist_group("report")


def test_every_point_has_its_picture(labelled_page: str) -> None:
    data = json.loads(re.findall(r"const data = (\{.*?\}), columns", labelled_page)[0])
    assert data["row"] == list(range(40))
    assert min(data["picture"]) >= 0
    assert sum(data["on"][0]) == 10
    assert sorted(set(data["class"])) == ["dark", "light"]


def test_without_labels_the_map_shows_clusters(unlabelled_page: str) -> None:
    assert "Colours are the coarsest clusters" in words(unlabelled_page)


def test_embeddings_that_are_not_numbers_leave_a_note(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(unlabelled, tmp_path)
    for path in sorted((run_dir / "round-0/embed").glob("*.arrow")):
        table = pa.ipc.open_file(path).read_all()
        values = np.full((table.num_rows, 8), np.nan, np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 8)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table.set_column(1, "embedding", column))
    text = words(write(run_dir).read_text())
    assert "The embeddings of round 0 have values that are not finite" in text
    assert "12 level-1 clusters" in text
