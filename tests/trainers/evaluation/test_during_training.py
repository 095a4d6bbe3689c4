import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from curation.base.errors import DataError
from tests.helpers import on_ranks
from tests.trainers.data.test_loader import shards
from tests.trainers.engine.test_train import CONFIG, VIT
from trainers.data.samples import SampleList
from trainers.engine.config import TrainConfig
from trainers.engine.train import train
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.during_training import Evaluations
from trainers.evaluation.embed import embed
from trainers.evaluation.knn import EvaluationSet
from trainers.models.config import TimmConfig
from trainers.models.encoders import Encoder
from trainers.output_files import BEST, CHECKPOINTS, ENCODERS, EVALUATIONS, newest_checkpoint

NUM, POOL = 23, 15  # more than two ranks can share evenly
EVALUATED = CONFIG.model_copy(update={"evaluate_every": 1.0})


def asked(samples: SampleList, *, has_labels: bool = True) -> EvaluationSet:
    """Three classes by colour: the last rows are queries, and one of the pool is unlabelled."""
    label = np.arange(NUM) * 3 // NUM if has_labels else np.full(NUM, -1)
    label[2] = -1
    config = EvaluateConfig(neighbours=(3,), batch_size=4)
    queries = np.isin(np.arange(NUM), np.arange(1, NUM, 3)) & (label >= 0)
    return EvaluationSet(samples, POOL, label, queries, config, seed=5)


def go(config: TrainConfig, samples: SampleList, out: Path, *, has_labels: bool = True, stop_after: int | None = None) -> None:
    for progress in train(config, samples, out, seed=3, evaluation_set=asked(samples, has_labels=has_labels)):
        if progress.step == stop_after:
            return


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / EVALUATIONS).read_text().splitlines()]


def contents(out: Path, *without: str) -> dict[str, bytes]:
    """Every file, also those that `best` leads to."""
    files = [path for path in [*out.rglob("*"), *(out / BEST).glob("*")] if path.is_file()]
    names = {path: str(path.relative_to(out)) for path in files}
    return {name: path.read_bytes() for path, name in names.items() if not name.startswith(without)}


@pytest.mark.parametrize(
    "encoder",
    [VIT.model_copy(update={"drop_path": 0.3}), TimmConfig(model="test_resnet", image_size=16)],
    ids=["vit", "batch norm"],
)
def test_training_notices_nothing(tmp_path: Path, encoder: TimmConfig) -> None:
    samples = shards(tmp_path, num=NUM)
    config = CONFIG.model_copy(update={"encoder": encoder, "epochs": 3.0})
    go(config, samples, tmp_path / "without")
    go(config.model_copy(update={"evaluate_every": 0.4}), samples, tmp_path / "with")
    assert len(lines(tmp_path / "with")) >= 7
    assert contents(tmp_path / "with", BEST, ENCODERS, EVALUATIONS) == contents(tmp_path / "without")


def _on_two_ranks(_: int, directory: Path) -> None:
    samples = SampleList.read(directory / "list.parquet", directory)
    for mode in ("ddp", "fsdp"):
        config = EVALUATED.model_copy(update={"parallel": mode, "epochs": 2.0})
        go(config.model_copy(update={"evaluate_every": None}), samples, directory / f"{mode} without")
        go(config, samples, directory / mode)


def test_on_split_ranks_scores_are_those_of_the_encoder_that_is_saved(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=NUM)
    on_ranks(_on_two_ranks, 2, tmp_path)
    for mode in ("ddp", "fsdp"):
        out = tmp_path / mode
        assert contents(out, BEST, ENCODERS, EVALUATIONS) == contents(tmp_path / f"{mode} without")
        found = {line["step"]: line for line in lines(out)}
        assert list(found) == [0, 3, 6]
        for step in (3, 6):
            encoder = Encoder.load(out / ENCODERS / f"step-{step:08d}")
            scores = asked(samples).scores(embed(encoder, samples, np.arange(NUM)))
            assert {name: found[step][name] for name in scores} == pytest.approx(scores, rel=1e-4)
            assert 0.3 < scores["knn"] <= 1
        assert found[3]["rankme"] != found[6]["rankme"]
        last = contents(out / ENCODERS / "step-00000006")
        assert last == {name: (out / name).read_bytes() for name in last}


class Kill(BaseException):
    """Nothing in the program catches it."""


def test_killed_anywhere_the_evaluations_end_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = shards(tmp_path, num=NUM)
    config = EVALUATED.model_copy(update={"keep_encoders": 1, "checkpoint_every": 5, "epochs": 5.0})
    go(config, samples, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [0, 3, 6, 9, 12, 15]

    def dies(function: Callable[..., None], at: int, *, before: bool) -> Callable[..., None]:
        calls = iter(range(100))

        def wrapped(*args: object) -> None:
            now = next(calls) == at
            if now and before:
                raise Kill
            function(*args)
            if now:
                raise Kill

        return wrapped

    for name in ("_save", "_link_best", "_delete_up_to"):
        for at, before in ((0, False), (1, True), (2, False), (4, True)):
            out = tmp_path / f"{name} {at} {before}"
            with monkeypatch.context() as patch:
                patch.setattr(Evaluations, name, dies(getattr(Evaluations, name), at, before=before))
                with pytest.raises(Kill):
                    go(config, samples, out)
            with (out / EVALUATIONS).open("a") as file:
                file.write('{"step": 99, "ep')
            go(config, samples, out)
            assert contents(out) == whole, out.name


class Scored:
    """Evaluations of a network that does not change, with scores made up."""

    def __init__(self, out: Path, samples: SampleList, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.samples, self.monkeypatch = out, samples, monkeypatch
        self.network: nn.Module = Encoder(VIT, nn.Identity())
        self.begin(0)

    def begin(self, step: int) -> None:
        config = EVALUATED.model_copy(update={"keep_encoders": 1})
        self.evaluations = Evaluations(
            self.out,
            config.encoder,
            asked(self.samples),
            evaluate_every=config.evaluate_every,
            keep_encoders=config.keep_encoders,
            steps_per_epoch=1,
            total_steps=6,
            first_step=step,
            device=torch.device("cpu"),
        )

    def measure(self, step: int, knn: float, settled: int) -> None:
        self.monkeypatch.setattr(EvaluationSet, "scores", lambda *_: {"knn": knn, "rankme": 9.0 - step})
        self.monkeypatch.setattr(Evaluations, "_features", lambda *_: np.zeros((NUM, 4), dtype=np.float32))
        self.evaluations.measure(step, self.network, settled)

    def there(self) -> tuple[list[int], int]:
        """Steps of the encoders, and of the best."""
        kept = sorted(int(path.name[5:]) for path in (self.out / ENCODERS).iterdir())
        return kept, int((self.out / BEST).resolve().name[5:])


def test_what_is_not_settled_costs_no_encoder_that_may_be_the_best_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = Scored(tmp_path / "out", shards(tmp_path, num=NUM), monkeypatch)
    scored.measure(1, 0.5, settled=0)
    scored.measure(2, 0.4, settled=1)
    scored.measure(3, 0.9, settled=2)
    scored.measure(4, 0.1, settled=2)
    assert scored.there() == ([1, 2, 3, 4], 3)
    scored.begin(2)  # a kill, or steps that were not finite
    assert scored.there() == ([1, 2], 1)
    assert [line["step"] for line in lines(scored.out)] == [1, 2]
    scored.measure(3, 0.3, settled=2)
    scored.measure(4, 0.5, settled=3)
    assert scored.there() == ([1, 3, 4], 4)
    scored.evaluations.finish()
    assert scored.there() == ([4], 4)


def test_without_labels_the_best_is_by_rankme(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=NUM)
    go(EVALUATED, samples, tmp_path / "out", has_labels=False)
    found = lines(tmp_path / "out")
    assert not any("knn" in line for line in found)
    best = max(found[1:], key=lambda line: line["rankme"])
    assert best["rankme"] > found[-1]["rankme"]  # or this would not tell the best from the last
    assert (tmp_path / "out" / BEST).resolve().name == f"step-{best['step']:08d}"


def test_a_copy_of_a_run_that_has_no_links_goes_on(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=NUM)
    go(EVALUATED, samples, tmp_path / "out", stop_after=12)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert not (tmp_path / "copy" / BEST).is_symlink()
    for name in ("out", "copy"):
        go(EVALUATED, samples, tmp_path / name)
    assert contents(tmp_path / "copy") == contents(tmp_path / "out")


def test_an_evaluation_that_cannot_be_written_stops_with_a_sentence_and_leaves_no_half(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=NUM)
    out = tmp_path / "out"
    go(EVALUATED, samples, out, stop_after=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # of any file, as a disk that is almost full
    try:
        with pytest.raises(DataError, match=r"evaluation of step 9 could not be written.*Make room"):
            go(EVALUATED, samples, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    newest = newest_checkpoint(out / CHECKPOINTS)
    assert newest is not None
    assert newest.name == "step-00000008"
    assert [path.name for path in sorted((out / ENCODERS).glob("step-*"))] == ["step-00000003", "step-00000006"]
    Encoder.load(out / BEST)
    go(EVALUATED, samples, out)
    assert [line["step"] for line in lines(out)] == [0, 3, 6, 9, 12, 15, 18, 21, 23]


def test_features_that_are_no_numbers_end_no_training(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=NUM)
    config = EVALUATED.model_copy(update={"learning_rate": 1e30, "warmup_epochs": 0.0, "clip_gradient": 1e30})
    with pytest.raises(DataError, match=r"Lower train\.learning_rate"):
        go(config, samples, tmp_path / "out")
    assert [line["rankme"] > 0 for line in lines(tmp_path / "out")] == [True, False]
