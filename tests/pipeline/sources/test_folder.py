import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from curation.base.errors import DataError
from pipeline.sources import folder as sources
from pipeline.sources.config import ImagesConfig
from pipeline.sources.folder import Folder
from pipeline.sources.long_tail import long_tail_counts
from pipeline.sources.source import Record
from pipeline.splits import HELD_OUT, POOL
from pipeline.storage.location import Location
from tests.helpers import write_images


def list_records(path: Path, scratch: Path) -> list[Record]:
    """All records of a source, by key."""
    source = Folder(ImagesConfig(path=path))
    records = [record for partition in source.partitions() for record in source.records(partition, scratch)]
    return sorted(records, key=lambda record: record.key)


def meaning(records: list[Record]) -> dict[str, tuple[str, str | None]]:
    return {record.key: (record.split, record.label) for record in records}


def place(record: Record) -> Location:
    (location,) = record.members.values()
    assert isinstance(location, Location)
    return location


def reasons(records: list[Record]) -> dict[str, str]:
    return {record.key: record.problem.reason for record in records if record.problem}


def test_paths_tell_split_and_label(tmp_path: Path) -> None:
    for name in (
        "a.jpg",
        "cat/b.png",
        "train/cat/c.JPG",
        "val/dog/d.jpeg",
        "x/Test/dog/e.webp",
        "train/f.bmp",
        "g.txt",
        ".h/i.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert meaning(list_records(tmp_path, tmp_path / "scratch")) == {
        "a.jpg": (POOL, None),
        "cat/b.png": (POOL, "cat"),
        "train/cat/c.JPG": (POOL, "cat"),
        "train/f.bmp": (POOL, None),
        "val/dog/d.jpeg": (HELD_OUT, "dog"),
        "x/Test/dog/e.webp": (HELD_OUT, "dog"),
    }


@pytest.mark.parametrize("name", ["heap.tar", "heap.tar.gz", "heap.tgz", "heap.tar.zst"])
def test_tars_of_every_kind_hold_the_same_images(tmp_path: Path, name: str) -> None:
    folder = write_images(tmp_path / "folder", 12)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.add(folder, ".")
    path = tmp_path / name
    if name.endswith(".tar"):
        path.write_bytes(plain.getvalue())
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.compress(plain.getvalue()))
    else:
        import gzip

        path.write_bytes(gzip.compress(plain.getvalue()))
    found = list_records(path, tmp_path / "scratch")
    expected = list_records(folder, tmp_path / "scratch")
    assert sorted((image.split, image.label) for image in found) == sorted((image.split, image.label) for image in expected)
    originals = {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for image in found:
        assert place(image).read() in originals


def test_a_tar_that_climbs_out_is_only_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../../escaped.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (found,) = list_records(tmp_path / "evil.tar", tmp_path / "scratch")
    assert place(found).url == str(tmp_path / "evil.tar")
    assert not list(tmp_path.parent.glob("escaped.png"))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_UNPACKED_RATIO", 2)
    (tmp_path / "bomb.tar.zst").write_bytes(zstandard.compress(bytes(20 * 2**20)))
    with pytest.raises(DataError, match="more than 2 times its size"):
        list_records(tmp_path / "bomb.tar.zst", tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())


def test_a_damaged_header_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder", 12)
    with tarfile.open(tmp_path / "heap.tar", "w") as tar:
        tar.add(folder, ".")
        middle = tar.getmembers()[8].offset
    content = bytearray((tmp_path / "heap.tar").read_bytes())
    content[middle : middle + 512] = b"?" * 512
    (tmp_path / "heap.tar").write_bytes(content)
    problems = reasons(list_records(tmp_path / "heap.tar", tmp_path / "scratch"))
    assert list(problems.values()) == ["damaged tar"]


def test_a_corrupt_archive_and_a_dangling_link_are_set_aside(tmp_path: Path) -> None:
    write_images(tmp_path / "source", 4)
    (tmp_path / "source" / "bad.tar.gz").write_bytes(b"\x1f\x8b\x08\x00" + b"\x07" * 600)
    (tmp_path / "source" / "bad.tar.zst").write_bytes(zstandard.compress(bytes(9000))[:-4] + b"????" * 9)
    (tmp_path / "source" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = list_records(tmp_path / "source", tmp_path / "scratch")
    assert {image.key for image in found if image.problem is None} == {
        image.key for image in found if image.key.startswith(("train", "test"))
    }
    assert reasons(found)["gone.jpg"] == "dangling link"


def test_links_in_circles_and_names_that_are_no_text_do_not_stop_the_listing(tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", 4)
    images = list_records(source, tmp_path / "scratch")
    (source / "train" / "circle").symlink_to(source)
    (source / "itself.jpg").symlink_to(source / "itself.jpg")
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes((source / "train" / "class 0" / "0000.png").read_bytes())
    found = list_records(source, tmp_path / "scratch")
    assert [image for image in found if image.problem is None] == images
    assert reasons(found) == {"itself.jpg": "dangling link", "caf\\xe9.jpg": "file name is not UTF-8"}
    for image in found:
        place(image).url.encode()


@pytest.mark.parametrize("content", [b"", b"no tar at all", bytes(700)])
def test_a_file_that_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.tar").write_bytes(content)
    write_images(tmp_path / "folder", 4)
    for image in list_records(tmp_path, tmp_path / "scratch"):
        assert image.problem is None or (image.key == "broken.tar" and image.problem.reason == "damaged tar")


def test_the_tail_follows_zipf_and_never_asks_for_more_than_there_is() -> None:
    counts = long_tail_counts(np.array([100, 100, 50, 100]), 8)
    assert counts.tolist() == [100, 35, 19, 12]
    assert (long_tail_counts(np.array([100, 10, 50, 100]), 8) <= [100, 10, 50, 100]).all()


@pytest.mark.parametrize("num_folders", [2, 200])
def test_partitions_cover_a_tree_once_however_many_there_are(tmp_path: Path, num_folders: int) -> None:
    for number in range(num_folders):
        for path in (f"{number}/a.jpg", f"{number}/deep/er/b.jpg", f"{number}/deep/c.jpg"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"x")
    (tmp_path / "top.jpg").write_bytes(b"x")
    keys = [record.key for record in list_records(tmp_path, tmp_path / "scratch")]
    assert len(keys) == len(set(keys)) == 3 * num_folders + 1
    assert len(Folder(ImagesConfig(path=tmp_path)).partitions()) > num_folders


def test_a_source_that_is_not_there_or_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Correct the path"):
        list_records(tmp_path / "nowhere", tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor a tar"):
        list_records(tmp_path / "notes.txt", tmp_path)
