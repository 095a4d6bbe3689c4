from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.base.errors import DataError
from curation.embeddings.files import EmbeddingFiles

ROWS = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)


def write(path: Path, rows: np.ndarray = ROWS, *, ids: np.ndarray | None = None, fixed: bool = True) -> Path:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]) if fixed else pa.array(list(rows))
    table = pa.table({"embedding": column, **({} if ids is None else {"row_id": ids})})
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=13)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.arrow", "x.feather", "x.parquet"])
@pytest.mark.parametrize("fixed", [True, False])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, fixed: bool) -> None:
    source = EmbeddingFiles.open(write(tmp_path / name, fixed=fixed))
    assert (source.num_rows, source.dim) == (50, 6)
    blocks = list(source.blocks())
    assert [first for first, _ in blocks] == [0, *np.cumsum([len(block) for _, block in blocks])[:-1]]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), ROWS)
    wanted = np.array([49, 0, 17, 17, 13])
    assert np.array_equal(source.take(wanted), ROWS[wanted])
    assert np.array_equal(source.row_ids(), np.arange(50))


def test_a_directory_is_its_files_by_name_and_workers_share_it(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", ROWS[20:], ids=np.arange(120, 150))
    write(tmp_path / "a.arrow", ROWS[:20], ids=np.arange(100, 120))
    (tmp_path / "notes.txt").write_text("not embeddings")
    source = EmbeddingFiles.open(tmp_path)
    assert np.array_equal(source.row_ids(), np.arange(100, 150))
    assert np.array_equal(source.take(np.arange(50)), ROWS)
    for workers in (1, 2, 3, 9):
        shares = [source.share(worker, workers) for worker in range(workers)]
        assert np.array_equal(np.concatenate([share.take(np.arange(share.num_rows)) for share in shares]), ROWS)


def test_normalized_rows_have_unit_length_in_their_own_type(tmp_path: Path) -> None:
    rows = ROWS.astype(np.float16)
    rows[3] = 0
    source = EmbeddingFiles.open(write(tmp_path / "x.npy", rows), normalize=True)
    found = source.take(np.arange(50))
    assert found.dtype == np.float16
    lengths = np.linalg.norm(found.astype(np.float32), axis=1)
    assert lengths[3] == 0
    assert np.allclose(np.delete(lengths, 3), 1, atol=2e-3)


def test_what_is_no_embedding_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no embeddings in"):
        EmbeddingFiles.open(tmp_path)
    np.save(tmp_path / "ints.npy", np.arange(12).reshape(3, 4))
    with pytest.raises(DataError, match=r"ints\.npy cannot be read as embeddings: it holds an array of int64"):
        EmbeddingFiles.open(tmp_path / "ints.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        EmbeddingFiles.open(tmp_path / "objects.npy")
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="'embedding'"):
        EmbeddingFiles.open(tmp_path / "other.parquet")
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(DataError, match="cannot be read"):
        EmbeddingFiles.open(tmp_path / "broken.arrow")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        EmbeddingFiles.open(tmp_path / "ragged.parquet")
    wide = [write(tmp_path / "wide.npy", ROWS), write(tmp_path / "narrow.npy", ROWS[:, :5])]
    with pytest.raises(DataError, match=r"6 in wide\.npy, 5 in narrow\.npy"):
        EmbeddingFiles.open(wide)
