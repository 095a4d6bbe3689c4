"""Whether a self-supervised training has collapsed, judged by numbers that it logs anyway, and which setting to change."""

import math
from dataclasses import dataclass
from typing import Literal

from trainers.methods.config import DinoConfig, MethodConfig, SwavConfig

Verdict = Literal["too early", "fine", "one prototype", "uniform assignments", "dimensional collapse", "dead prototypes"]

# Figures in the following are of tiny ViTs trained on digits for 500 steps with 256 prototypes: by DINO and SwAV as they are,
# and by both with a setting that ruins them (no centering, teacher temperature 1, epsilon 2).
MIN_STEPS = 200
"""Steps without a verdict, or warm-up if longer: a new encoder may look collapsed, and a collapse takes about 100 steps."""
_ONE = 3.0
"""Prototypes that the mean assignment is worth: 1.6 without centering, else 162 and more."""
_UNIFORM = 0.98
"""Share of ln K in the entropy of single assignments: 0.9997 and more where it was ruined, else up to 0.89."""
_ONE_DIRECTION = 0.1
"""`feature_std` at a mean cosine of 0.99; it falls from about 1 to 0 in Chen and He, "SimSiam", CVPR 2021, figure 2."""
_FEW_DIRECTIONS = 0.05
"""RankMe as a share of what a sample allows (Garrido et al., ICML 2023): 0.12 and more in those that were not ruined."""
_FEW_PROTOTYPES = 0.02
"""Prototypes in use as a share of what a sample allows: 0.055 and more. DINO never uses most of a large head (Govindarajan et
al., "On Partial Prototype Collapse in the DINO Family", BMVC 2024)."""


@dataclass(frozen=True)
class TeacherUse:
    """What a sample of the teacher's assignments shows, by `trainers.methods.losses.use_of_prototypes`."""

    entropy: float
    """Mean entropy of an assignment, in nats."""
    perplexity: float
    """exp of the entropy of the mean assignment: how many prototypes it is worth, from 1 to K."""
    used: float
    """Prototypes that are the largest entry of some row."""
    rows: int
    prototypes: int


@dataclass(frozen=True)
class FeatureSpread:
    """What a sample of the encoder's features shows, by `trainers.evaluation.knn.label_free`."""

    rankme: float
    feature_std: float
    rows: int
    dim: int


@dataclass(frozen=True)
class Health:
    verdict: Verdict
    advice: str
    """What was seen and which setting to change, or nothing."""


def judge(step: int, warmup_steps: float, teacher: TeacherUse | None, features: FeatureSpread, method: MethodConfig) -> Health:
    """The verdict after `step` steps, `warmup_steps` of them warm-up; `teacher` is None for methods without prototypes.

    Of several findings, the one that explains the others.
    """
    if step < max(MIN_STEPS, warmup_steps):
        return Health("too early", "")
    verdict, seen = _finding(teacher, features)
    return Health(verdict, f"{seen} {_remedy(verdict, method)}".strip())


def _finding(teacher: TeacherUse | None, features: FeatureSpread) -> tuple[Verdict, str]:
    """What is wrong, and the figures that say so."""
    possible = min(features.rows, features.dim)
    if teacher is not None:
        prototypes, largest = teacher.prototypes, math.log(teacher.prototypes)
        if teacher.perplexity < min(_ONE, prototypes / 2):
            return "one prototype", f"The mean assignment is worth {teacher.perplexity:.1f} of {prototypes} prototypes."
        if teacher.entropy > _UNIFORM * largest:
            return "uniform assignments", f"Assignments have an entropy of {teacher.entropy:.2f}, where ln K is {largest:.2f}."
    if features.feature_std < _ONE_DIRECTION:
        return "dimensional collapse", f"All features point one way: their deviation is {features.feature_std:.3f}, not near 1."
    if features.rankme < _FEW_DIRECTIONS * possible:
        return "dimensional collapse", f"Features use {features.rankme:.1f} of {possible} directions (RankMe)."
    if teacher is not None and teacher.used < _FEW_PROTOTYPES * min(teacher.rows, teacher.prototypes):
        return "dead prototypes", f"{teacher.rows} samples use {teacher.used:.0f} of {teacher.prototypes} prototypes."
    return "fine", ""


def _remedy(verdict: Verdict, method: MethodConfig) -> str:
    narrow = (
        "Lower train.learning_rate or raise train.warmup_epochs; if it stays, crop less hard: raise train.views.local_scale."
    )
    if verdict == "fine" or not isinstance(method, DinoConfig | SwavConfig):
        return "" if verdict == "fine" else narrow
    if isinstance(method, DinoConfig):
        sharpness = f"train.method.teacher_temperature ({method.teacher_temperature})"
        balance = (
            f"Centering does not keep up with sharpening: lower train.method.center_momentum ({method.center_momentum}), raise "
            f"{sharpness} or train.global_batch_size, lower train.learning_rate, or set train.method.targets to sinkhorn."
            if method.targets == "centering"
            else f"Targets are not balanced: raise {sharpness} or train.global_batch_size."
        )
    else:
        sharpness = f"train.method.epsilon ({method.epsilon})"
        iterations = f"train.method.sinkhorn_iterations ({method.sinkhorn_iterations})"
        balance = f"Codes are not balanced: raise {iterations} or train.global_batch_size."
    return {
        "one prototype": balance,
        "uniform assignments": f"Targets say nothing: lower {sharpness}, or raise train.method.freeze_prototypes_epochs "
        f"({method.freeze_prototypes_epochs}).",
        "dimensional collapse": narrow,
        "dead prototypes": f"Lower train.method.prototypes ({method.prototypes}) or train.learning_rate, or raise {sharpness}.",
    }[verdict]
