"""A whole run: what it leaves for other tools, and that nothing can break it."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from safetensors.torch import load_file
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from launch.config.load import load_run
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.rounds.graph import steps
from pipeline.splits import POOL
from tests.conftest import FinishedRun
from tests.helpers import TINY, WINDROW, Killable, artifacts, contents, windrow, words
from trainers.data.samples import PLACE

pytestmark = pytest.mark.xdist_group("run")


def test_plain_webdataset_reads_the_shards(tiny_run: FinishedRun) -> None:
    shards = sorted(str(path) for path in (tiny_run.directory / "samples").glob("*.tar"))
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(shards, shardshuffle=False)}
    index = pa.concat_tables([pq.read_table(path) for path in sorted((tiny_run.directory / "samples" / "index").iterdir())])
    assert set(found) == set(index["key"].to_pylist())
    for row in index.to_pylist():
        (content,) = [value for name, value in found[row["key"]].items() if not name.startswith("_")]
        assert (len(content), zlib.crc32(content)) == (row["size"], row["crc32"])
        with (tiny_run.directory / "samples" / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert file.read(row["size"]) == content
    decoded = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")))
    assert any(getattr(value, "shape", None) == (20, 24, 3) for value in decoded.values())


def test_bad_files_are_set_aside_with_their_reasons(tiny_run: FinishedRun, tiny_images: Path) -> None:
    rejects = {row["source"]: row for row in pq.read_table(tiny_run.directory / "samples" / "rejects.parquet").to_pylist()}
    reasons = {source: (row["reason"], row["detail"] or row["kept_source"] or "") for source, row in rejects.items()}
    assert reasons == {
        "train/empty.jpg": ("empty file", ""),
        "train/cut.png": ("corrupt image", "OSError"),
        "train/class 0/0000.png": ("duplicate", "train/class 0/0000 copy.png"),
        "train/leak.jpg": ("duplicate", "test/class 0/0003.jpg"),  # the held-out one stays
        "thumbnails/train/class 0/0000.png": ("too small", "10 x 6 pixels"),
    }
    for source, row in rejects.items():
        assert (row["url"], row["offset"], row["size"]) == (f"{tiny_images}/{source}", 0, (tiny_images / source).stat().st_size)


def test_row_ids_follow_the_source_whatever_the_split(tiny_run: FinishedRun) -> None:
    files = sorted((tiny_run.directory / "samples" / "index").iterdir())
    tables = [pq.read_table(path).to_pylist() for path in files]
    index = sorted((row for table in tables for row in table), key=lambda row: row["row_id"])
    assert [row["row_id"] for row in index] == list(range(48))
    assert [row["split"] for row in index].count("test") == 12
    assert {row["generation"] for row in index} == {0}
    for folder in ("train/class 0", "test/class 1"):
        sources = [row["source"] for row in index if row["source"].startswith(folder)]
        assert sources == sorted(sources)
    for table in tables:
        assert len({row["split"] for row in table}) == 1
        assert [row["row_id"] for row in table] == sorted(row["row_id"] for row in table)
    held_out = [row["row_id"] for row in index if row["split"] == "test"]
    assert min(held_out) < max(row["row_id"] for row in index if row["split"] == "train")


def test_pyarrow_and_numpy_read_every_table(tiny_run: FinishedRun) -> None:
    place = tiny_run.directory / "round-1"
    samples = Samples.open(tiny_run.directory / "samples")
    tables = [pa.ipc.open_file(path).read_all() for path in Embeddings.open(place / "embed").files(POOL)]
    embeddings = pa.concat_tables(tables)
    pool = samples.index(POOL, ["row_id"])["row_id"].to_pylist()
    assert embeddings["row_id"].to_pylist() == pool == np.load(place / "cluster" / "row_id.npy").tolist()
    files = sorted((place / "embed").glob("*.arrow"))
    assert sum(pa.ipc.open_file(path).read_all().num_rows for path in files) == 48
    assert embeddings.schema.field("embedding").type == pa.list_(pa.float16(), 16)
    selection = pq.read_table(place / "select" / "selection.parquet")
    assert selection.num_rows == round(len(pool) / 2)
    training = pq.read_table(place / "select" / "training.parquet").to_pylist()
    assert [row["row_id"] for row in training] == selection["row_id"].to_pylist()
    assert {"shard", "offset", "size", "crc32", "repeats", "level_1", "level_2"} <= set(training[0])
    labels = pq.read_table(place / "label" / "labels.parquet")
    assert labels["row_id"].to_pylist() == pool
    assignment = np.load(place / "cluster" / "level-1" / "assignment.npy")
    assert labels["level_1"].to_pylist() == assignment.tolist()
    upper = np.load(place / "cluster" / "level-2" / "assignment.npy")
    assert labels["level_2"].to_pylist() == upper[assignment].tolist()
    assert "label" not in training[0]
    places = {row["row_id"]: row for row in samples.index(POOL, PLACE).to_pylist()}
    label_of = {row["row_id"]: row for row in labels.to_pylist()}
    for row in training:
        assert {name: row[name] for name in PLACE} == places[row["row_id"]]
        assert (row["level_1"], row["level_2"]) == (label_of[row["row_id"]]["level_1"], label_of[row["row_id"]]["level_2"])


def test_torch_and_safetensors_read_the_weights(tiny_run: FinishedRun) -> None:
    train = tiny_run.directory / "round-1" / "train"
    (path,) = (train / "checkpoints").iterdir()
    state = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert json.loads((path / "state.json").read_text())["step"] == sum(1 for _ in (train / "metrics.jsonl").open())
    exported = load_file(train / "encoder.safetensors")
    assert torch.equal(exported["cls_token"], state["method.teacher.backbone.cls_token"])


def test_the_second_round_starts_from_the_first(tiny_run: FinishedRun) -> None:
    for number in (0, 1):
        assert (tiny_run.directory / f"round-{number}" / "evaluate" / "evaluation.json").exists()
    manifest = Manifest.read(tiny_run.directory / "round-1" / "embed")
    assert manifest.parents["encoder"] == Manifest.read(tiny_run.directory / "round-0" / "train").fingerprint
    evaluation = json.loads((tiny_run.directory / "round-1" / "evaluate" / "evaluation.json").read_text())
    assert {"knn", "linear", "rankme", "class_balance"} <= set(evaluation)


def test_clusters_are_compared_with_the_classes(tiny_run: FinishedRun) -> None:
    measured = Manifest.read(tiny_run.directory / "round-1" / "evaluate").statistics["class_agreement"]
    index = pa.concat_tables([pq.read_table(path) for path in sorted((tiny_run.directory / "samples" / "index").iterdir())])
    classes = {row["row_id"]: row["label"] for row in index.to_pylist() if row["split"] == "train"}
    clusters = pq.read_table(tiny_run.directory / "round-1" / "label" / "labels.parquet").to_pydict()
    labels = [classes[row] for row in clusters.pop("row_id")]
    for name, level in clusters.items():
        assert measured[name]["nmi"] == pytest.approx(normalized_mutual_info_score(labels, level))
        assert measured[name]["ami"] == pytest.approx(adjusted_mutual_info_score(labels, level))
        assert measured[name]["ari"] == pytest.approx(adjusted_rand_score(labels, level))
    assert list(measured) == list(clusters) == ["level_1", "level_2"]


def test_every_part_is_what_its_manifest_says(tiny_run: FinishedRun) -> None:
    for path in tiny_run.directory.rglob("manifest.json"):
        for part in Manifest.read(path.parent).parts:
            assert Part.describe(path.parent, part.path, part.num_rows, split=part.split, row_ids=part.row_ids) == part


def test_what_will_run_is_known_beforehand(tiny_run: FinishedRun) -> None:
    for step in steps(load_run(str(tiny_run.directory / "config.yaml"))):
        assert Manifest.read(tiny_run.directory / step.name).fingerprint == step.fingerprint


def test_the_driver_only_schedules(tiny_run: FinishedRun) -> None:
    assert not tiny_run.loaded_torch


def test_a_report_that_cannot_be_written_does_not_undo_a_run(tiny_run: FinishedRun) -> None:
    program = (
        "from launch.report import page\n"
        "def broken(directory): raise RuntimeError('no page today')\n"
        "page.write = broken\n"
        "from launch.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "run", str(tiny_run.directory / "config.yaml"), "--inline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The run is finished; its report could not be written" in done.stderr
    assert "no page today" in done.stderr


def test_the_same_command_again_does_nothing(tiny_run: FinishedRun) -> None:
    before = _state(tiny_run.directory)
    again = windrow("run", str(tiny_run.directory / "config.yaml"))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 14
    assert _state(tiny_run.directory) == before


def test_other_settings_are_refused_or_set_aside(tiny_run: FinishedRun, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run.directory, copy)
    trained = _state(copy / "round-0" / "train")
    command = ["run", str(tiny_run.config), f"run_dir={copy}", *words({**TINY, "rounds": 1, "evaluate.neighbours": [5]})]
    refused = windrow(*command)
    assert refused.returncode == 2
    assert "neighbours was [3], now [5]" in refused.stderr
    assert "--redo" in refused.stderr
    done = windrow(*command, "--redo")
    assert done.returncode == 0, done.stderr
    old, new = copy / "superseded" / "round-0" / "evaluate.1", copy / "round-0" / "evaluate"
    assert "knn_3" in json.loads((old / "evaluation.json").read_text())
    assert "knn_5" in json.loads((new / "evaluation.json").read_text())
    assert _state(copy / "round-0" / "train") == trained


def test_status_and_plan_tell_the_truth(tiny_run: FinishedRun, tmp_path: Path) -> None:
    status = windrow("status", str(tiny_run.directory))
    assert status.returncode == 0
    assert status.stdout.count("finished") == 14
    pool = Manifest.read(tiny_run.directory / "samples").statistics["pool"]
    assert f"pool {pool}, held out 12, set aside 5" in status.stdout
    planned = windrow("plan", str(tiny_run.config), f"run_dir={tmp_path}/none", *words(TINY))
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("to do") == 14
    deduplicated = windrow("plan", str(tiny_run.config), f"run_dir={tmp_path}/none", *words(TINY), "dedup.similarity=0.9")
    assert deduplicated.stdout.count("to do") == 16, deduplicated.stderr
    assert "round-1/dedup" in deduplicated.stdout
    assert not (tmp_path / "none").exists()


def test_stage_verbs_make_what_a_run_makes(tiny_run: FinishedRun, tiny_images: Path, tmp_path: Path) -> None:
    place, out = tiny_run.directory, tmp_path
    for command in (
        ["shard", str(tiny_images), f"{out}/samples", "samples_per_shard=16"],
        ["embed", f"{out}/samples", f"{out}/embed", "encoder.image_size=8", "encoder.dim=12"],
        ["cluster", f"{out}/embed", f"{out}/cluster", "levels=[12,4]", "resampling_steps=2"],
        ["dedup", f"{out}/embed", f"{out}/cluster", f"{out}/dedup", "similarity=0.99"],
        ["select", f"{out}/cluster", f"{out}/select", "fraction=0.5", "--samples", f"{out}/samples"],
    ):
        done = windrow(*command, "--inline")
        assert done.returncode == 0, done.stderr
    assert (out / "samples" / "shard-000000.tar").read_bytes() == (place / "samples" / "shard-000000.tar").read_bytes()
    assert Manifest.read(out / "samples").fingerprint == Manifest.read(place / "samples").fingerprint
    assert pq.read_table(out / "select" / "selection.parquet").num_rows == 18
    scored = windrow("evaluate", f"{out}/samples", str(place / "round-0" / "train"), f"{out}/evaluate", "--inline")
    assert scored.returncode == 0, scored.stderr
    assert "knn:" in scored.stdout


def test_encoders_are_used_wherever_they_lie(tiny_run: FinishedRun, tmp_path: Path) -> None:
    samples, train = tiny_run.directory / "samples", tiny_run.directory / "round-0" / "train"
    lines = [json.loads(line) for line in (train / "evaluations.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 5, 9, 14]
    best = Manifest.read(train).statistics["best"]
    assert best in lines
    scored = windrow("evaluate", str(samples), str(train / "best"), f"{tmp_path}/scores", "neighbours=[3]", "--inline")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert scores["knn_3"] == best["knn_3"]

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((train / "encoder.safetensors").read_bytes())
    encoder = {"type": "vit", "image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "pool": "mean"}
    start = {"weights": copy, "mean": [0.5] * 3, "std": [0.5] * 3}
    embedded = windrow(
        "embed",
        str(samples),
        f"{tmp_path}/embed",
        *words({f"encoder.{k}": v for k, v in (encoder | start).items()}),
        "--inline",
    )
    assert embedded.returncode == 0, embedded.stderr
    for path in (tiny_run.directory / "round-1" / "embed").glob("*.arrow"):
        assert (tmp_path / "embed" / path.name).read_bytes() == path.read_bytes()


def test_other_selections_are_mixed_in(tiny_run: FinishedRun, tmp_path: Path) -> None:
    samples, selection = tiny_run.directory / "samples", tiny_run.directory / "round-1" / "select"
    settings = {key.removeprefix("train."): value for key, value in TINY.items() if key.startswith("train.")}
    settings |= {"epochs": 2, "evaluate_every": "null", "ranks": 1}

    def train(out: str, **other: object) -> str:
        mix = [{key: value if key == "weight" else str(value) for key, value in other.items()}]
        done = windrow("train", str(samples), str(selection), f"{tmp_path}/{out}", *words(settings | {"mix": mix}), "--inline")
        assert done.returncode == (0 if out == "mixed" else 2), done.stderr
        return done.stderr

    train("mixed", samples=samples, selection=tiny_run.directory / "round-0" / "select", weight=0.25)
    made = Manifest.read(tmp_path / "mixed")
    parents = [tiny_run.directory / "samples", tiny_run.directory / "round-0" / "select"]
    assert made.settings["mix"] == [[*(Manifest.read(path).fingerprint for path in parents), 0.25]]
    assert made.statistics["steps"] == 9  # two epochs of 18 rows of each, 8 a step
    assert "nowhere does not exist" in train("missing", samples=samples, selection=tmp_path / "nowhere", weight=0.25)
    assert "less than 1" in train("all", samples=samples, selection=selection, weight=1)


def test_stages_refuse_what_is_not_theirs(tiny_run: FinishedRun, tmp_path: Path) -> None:
    wrong = windrow("cluster", str(tiny_run.directory / "samples"), f"{tmp_path}/x")
    assert wrong.returncode == 2
    assert "holds samples; embeddings is needed here" in wrong.stderr
    missing = windrow("cluster", f"{tmp_path}/nowhere", f"{tmp_path}/y")
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr


def test_two_writers_do_not_meet(tiny_run: FinishedRun, tmp_path: Path) -> None:
    from pipeline.storage.lease import locked

    with locked(tmp_path / "run"):
        second = windrow("run", str(tiny_run.config), f"run_dir={tmp_path}/run", *words(TINY))
    assert second.returncode == 2
    assert "Another windrow process" in second.stderr


def test_killed_in_every_stage_a_run_ends_with_the_same_bits(tiny_run: FinishedRun, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [WINDROW, "run", str(tiny_run.config), f"run_dir={run_dir}", *words(TINY)]
    names = [step.name for step in steps(load_run(str(tiny_run.directory / "config.yaml")))]
    chance = random.Random(0)
    hit: list[str] = []  # for each kill the stage that it left unfinished
    finished: dict[Path, tuple[int, int]] = {}
    for name, following in itertools.zip_longest(names, names[1:]):
        # Once as the stage begins and once anywhere in it, at the latest when the next begins: that one has kills of its
        # own. A selection takes milliseconds and must be hit at once.
        for latest in (0.0, 0.0) if name.endswith(("select", "label")) else (0.3, 8.0):
            if (run_dir / name / "manifest.json").exists():
                break  # the last kill came just too late for it
            running = Killable(command, tmp_path / "log")
            assert running.wait_for(f"{name} …"), (tmp_path / "log").read_text()
            running.wait_for(f"{following} …", chance.uniform(0, latest))
            running.kill()
            hit += [name for name in names if not (run_dir / name / "manifest.json").exists()][:1]
            for manifest in run_dir.rglob("manifest.json"):
                for part in Manifest.read(manifest.parent).parts:
                    state = (manifest.parent / part.path).stat()
                    finished.setdefault(manifest.parent / part.path, (state.st_ino, state.st_mtime_ns))
    done = windrow(*command[1:])
    assert done.returncode == 0, done.stderr
    assert contents(run_dir) == contents(tiny_run.directory)
    for path, state in finished.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == state, f"{path} was made again"
    assert len(hit) >= 20
    assert {name.split("/")[-1] for name in hit} == {name.split("/")[-1] for name in names}


def test_a_signal_saves_and_the_same_command_continues(tiny_run: FinishedRun, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    rarely = {**TINY, "train.checkpoint_every": 1000}
    command = [WINDROW, "run", str(tiny_run.config), f"run_dir={run_dir}", *words(rarely)]
    running = Killable(command, tmp_path / "log")
    metrics = run_dir / "round-0" / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 2):
        time.sleep(0.01)
    seen = metrics.read_text().count("\n")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 75
    log = (tmp_path / "log").read_text()
    saved = int(re.search(r"Saved at step (\d+) of \d+, as a signal asked", log).group(1))  # type: ignore[union-attr]
    assert saved >= seen
    assert metrics.read_text().count("\n") == saved
    done = windrow(*command[1:])
    assert done.returncode == 0, done.stderr
    assert contents(run_dir / "round-0") == contents(tiny_run.directory / "round-0")


def _state(run_dir: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in artifacts(run_dir)}


def test_nothing_in_a_shard_tells_when_or_by_whom_it_was_made(tiny_run: FinishedRun) -> None:
    with tarfile.open(tiny_run.directory / "samples" / "shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
