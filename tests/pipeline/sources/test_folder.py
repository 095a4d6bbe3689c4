import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from curation.base.errors import DataError
from pipeline.sources import folder as sources
from pipeline.sources.folder import HELD_OUT, POOL, find_images, long_tail_counts, thin_to_long_tail
from tests.helpers import write_images


def meaning(found: list[sources.Found]) -> dict[str, tuple[str, str | None]]:
    return {image.source: (image.split, image.label) for image in found}


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
    assert meaning(find_images(tmp_path, tmp_path / "scratch")) == {
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
    found = find_images(path, tmp_path / "scratch")
    expected = find_images(folder, tmp_path / "scratch")
    assert sorted((image.split, image.label) for image in found) == sorted((image.split, image.label) for image in expected)
    originals = {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for image in found:
        assert image.file.read_bytes()[image.offset : image.offset + image.size] in originals


def test_a_tar_that_climbs_out_is_only_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../../escaped.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (found,) = find_images(tmp_path / "evil.tar", tmp_path / "scratch")
    assert found.file == tmp_path / "evil.tar"
    assert not list(tmp_path.parent.glob("escaped.png"))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_UNPACKED_RATIO", 2)
    (tmp_path / "bomb.tar.zst").write_bytes(zstandard.compress(bytes(20 * 2**20)))
    with pytest.raises(DataError, match="more than 2 times its size"):
        find_images(tmp_path / "bomb.tar.zst", tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())


def test_a_damaged_header_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder", 12)
    with tarfile.open(tmp_path / "heap.tar", "w") as tar:
        tar.add(folder, ".")
        middle = tar.getmembers()[8].offset
    content = bytearray((tmp_path / "heap.tar").read_bytes())
    content[middle : middle + 512] = b"?" * 512
    (tmp_path / "heap.tar").write_bytes(content)
    problems = [image.problem for image in find_images(tmp_path / "heap.tar", tmp_path / "scratch") if image.problem]
    assert len(problems) == 1
    assert "damaged tar" in problems[0]


def test_a_corrupt_archive_and_a_dangling_link_are_set_aside(tmp_path: Path) -> None:
    write_images(tmp_path / "source", 4)
    (tmp_path / "source" / "bad.tar.gz").write_bytes(b"\x1f\x8b\x08\x00" + b"\x07" * 600)
    (tmp_path / "source" / "bad.tar.zst").write_bytes(zstandard.compress(bytes(9000))[:-4] + b"????" * 9)
    (tmp_path / "source" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = find_images(tmp_path / "source", tmp_path / "scratch")
    assert {image.source for image in found if image.problem is None} == {
        image.source for image in found if image.source.startswith(("train", "test"))
    }
    assert "dangling link" in [image.problem for image in found]


def test_links_in_circles_and_names_that_are_no_text_do_not_stop_the_listing(tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", 4)
    images = find_images(source, tmp_path / "scratch")
    (source / "train" / "circle").symlink_to(source)
    (source / "itself.jpg").symlink_to(source / "itself.jpg")
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes((source / "train" / "class 0" / "0000.png").read_bytes())
    found = find_images(source, tmp_path / "scratch")
    assert [image for image in found if image.problem is None] == images
    problems = {image.source: image.problem for image in found if image.problem}
    assert problems == {"itself.jpg": "dangling link", "caf\\xe9.jpg": "file name is not UTF-8"}
    for image in found:
        str(image.file).encode()


@pytest.mark.parametrize("content", [b"", b"no tar at all", bytes(700)])
def test_a_file_that_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.tar").write_bytes(content)
    write_images(tmp_path / "folder", 4)
    for image in find_images(tmp_path, tmp_path / "scratch"):
        assert image.problem is None or (image.source == "broken.tar" and "damaged tar" in image.problem)


def test_the_tail_follows_zipf_and_never_asks_for_more_than_there_is() -> None:
    counts = long_tail_counts(np.array([100, 100, 50, 100]), 8)
    assert counts.tolist() == [100, 35, 19, 12]
    assert (long_tail_counts(np.array([100, 10, 50, 100]), 8) <= [100, 10, 50, 100]).all()


def test_thinning_spares_the_held_out_and_is_always_the_same(tmp_path: Path) -> None:
    found = find_images(write_images(tmp_path, 120), tmp_path / "scratch")
    thin = thin_to_long_tail(found, 5)
    assert thin == thin_to_long_tail(found, 5)
    held_out = [image for image in found if image.split == HELD_OUT]
    assert [image for image in thin if image.split == HELD_OUT] == held_out
    sizes = [sum(image.split == POOL and image.label == f"class {label}" for image in thin) for label in range(3)]
    assert sizes == [30, 10, 6]
    assert thin_to_long_tail(found, 1) == found
