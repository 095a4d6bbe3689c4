from pathlib import Path

import pytest

from curation.base.files import atomic_path, remove_temporary, write_atomic


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_atomic(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_leftovers_of_killed_writers_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "kept", b"1")
    context = atomic_path(tmp_path / "sub" / "lost")
    context.__enter__().write_text("half")  # and the process is gone
    remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]
