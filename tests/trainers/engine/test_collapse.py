import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.engine.collapse import MIN_STEPS, FeatureSpread, Health, TeacherUse, judge
from trainers.evaluation.knn import label_free
from trainers.methods.config import DinoConfig, SwavConfig
from trainers.methods.losses import use_of_prototypes

ROWS, PROTOTYPES, DIM = 512, 256, 64
DINO, SWAV = DinoConfig(prototypes=PROTOTYPES), SwavConfig(prototypes=PROTOTYPES)
both = pytest.mark.parametrize("method", [DINO, SWAV], ids=["dino", "swav"])


def teacher_use(assignments: Tensor) -> TeacherUse:
    found = use_of_prototypes(assignments)
    names = ("assignment_entropy", "prototype_perplexity", "prototypes_used")
    return TeacherUse(*(float(found[name]) for name in names), *assignments.shape)


def teacher(scores: Tensor) -> TeacherUse:
    return teacher_use(torch.softmax(scores, dim=1))


def noise(columns: int = PROTOTYPES) -> Tensor:
    return torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(0))


def spread(features: Tensor) -> FeatureSpread:
    found = label_free(features.numpy(), rng_key=1)
    return FeatureSpread(found["rankme"], found["feature_std"], *features.shape)


HEALTHY_TEACHER, HEALTHY_FEATURES = teacher(3 * noise()), spread(noise(DIM))


def verdict(use: TeacherUse, method: DinoConfig | SwavConfig, features: FeatureSpread = HEALTHY_FEATURES) -> Health:
    return judge(1000, 500.0, use, features, method)


def test_measures_of_assignments_worked_out_by_hand() -> None:
    use = teacher_use(torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]]))
    assert use.entropy == pytest.approx(np.log(2) / 2)
    assert use.perplexity == pytest.approx(np.exp(0.5 * np.log(2) + 2 * 0.25 * np.log(4)))
    assert (use.used, use.rows, use.prototypes) == (2, 2, 4)


@both
@pytest.mark.parametrize("sharpness", [1, 3, 10, 100])
def test_a_healthy_teacher_is_fine_however_sharp(method: DinoConfig | SwavConfig, sharpness: float) -> None:
    assert verdict(teacher(sharpness * noise()), method) == Health("fine", "")


@both
def test_two_prototypes_used_alike_are_fine(method: DinoConfig | SwavConfig) -> None:
    assert verdict(teacher(10 * noise(2)), method).verdict == "fine"


@both
def test_nothing_is_said_at_initialisation_and_during_warm_up(method: DinoConfig | SwavConfig) -> None:
    new, narrow = teacher(1e-4 * noise()), spread(1 + 1e-3 * noise(DIM))
    for step, warmup in ((0, 0.0), (MIN_STEPS - 1, 0.0), (2 * MIN_STEPS, 2.5 * MIN_STEPS)):
        assert judge(step, warmup, new, narrow, method) == Health("too early", "")
    assert judge(MIN_STEPS, 0.0, new, narrow, method).verdict == "uniform assignments"


def test_all_samples_on_one_prototype() -> None:
    scores = noise()
    scores[:, 7] += 12
    found = verdict(teacher(scores), DINO)
    assert found.verdict == "one prototype"
    assert "center_momentum (0.9)" in found.advice
    assert "entering" not in verdict(teacher(scores), DINO.model_copy(update={"targets": "sinkhorn"})).advice
    assert "sinkhorn_iterations (3)" in verdict(teacher(scores), SWAV).advice
    # Features collapse too; why is in the assignments.
    assert verdict(teacher(scores), DINO, spread(1 + 1e-3 * noise(DIM))).verdict == "one prototype"


def test_uniform_assignments() -> None:
    found = verdict(teacher(0.05 * noise()), DINO)
    assert found.verdict == "uniform assignments"
    assert "lower train.method.teacher_temperature (0.04)" in found.advice
    assert "lower train.method.epsilon (0.05)" in verdict(teacher(0.05 * noise()), SWAV).advice


@both
def test_features_in_one_point_or_in_few_directions(method: DinoConfig | SwavConfig) -> None:
    point = verdict(HEALTHY_TEACHER, method, spread(1 + 0.05 * noise(DIM)))
    plane = verdict(HEALTHY_TEACHER, method, spread(noise(2) @ noise(DIM)[:2] + 1e-4 * noise(DIM)))
    assert point.verdict == plane.verdict == "dimensional collapse"
    assert "point one way" in point.advice
    assert "of 64 directions" in plane.advice
    assert "train.learning_rate" in point.advice


@both
def test_few_prototypes_take_everything(method: DinoConfig | SwavConfig) -> None:
    scores = noise()
    scores[:, :4] += 9 * torch.nn.functional.one_hot(torch.arange(ROWS) % 4)
    found = verdict(teacher(scores), method)
    assert found.verdict == "dead prototypes"
    assert "512 samples use 4 of 256 prototypes" in found.advice
    assert "train.method.prototypes (256)" in found.advice
