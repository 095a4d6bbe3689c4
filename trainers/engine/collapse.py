"""Detection of collapse of a self-supervised training, from numbers that it logs anyway, with the setting to change."""

import math
from dataclasses import dataclass
from typing import Literal

from trainers.methods.config import DinoConfig, MethodConfig, SwavConfig

Verdict = Literal["too early", "fine", "one prototype", "uniform assignments", "dimensional collapse", "dead prototypes"]

# The figures below were measured on tiny ViTs trained on digits for 500 steps with 256 prototypes, by DINO and SwAV, with
# their usual settings and with one that makes them collapse (no centering, teacher temperature 1, epsilon 2).
MIN_STEPS = 200
"""First steps without a verdict, or the warm-up if longer: a new encoder may look collapsed, and a collapse takes about 100."""
_MIN_PERPLEXITY = 3.0
"""Smallest healthy perplexity of the mean assignment: 1.6 without centering, else 162 and more."""
_MAX_ENTROPY = 0.98
"""Largest healthy mean entropy of an assignment, as a share of ln K: 0.9997 and more when collapsed, else up to 0.89."""
_MIN_FEATURE_STD = 0.1
"""Smallest healthy `feature_std`, that of a mean cosine of 0.99; it falls from about 1 to 0 in Chen and He, "SimSiam", CVPR
2021, figure 2."""
_MIN_RANKME = 0.05
"""Smallest healthy RankMe, as a share of the largest that a sample allows (Garrido et al., ICML 2023): 0.12 and more without
collapse."""
_MIN_USED = 0.02
"""Smallest healthy share of prototypes in use, of those that a sample can use: 0.055 and more without collapse. DINO never uses
most of a large head (Govindarajan et al., "On Partial Prototype Collapse in the DINO Family", BMVC 2024)."""


@dataclass(frozen=True)
class TeacherUse:
    """Measures of a sample of the teacher's assignments, from `trainers.methods.losses.use_of_prototypes`."""

    entropy: float
    """Mean entropy of an assignment, in nats."""
    perplexity: float
    """exp of the entropy of the mean assignment, from 1 to K."""
    used: float
    """Number of prototypes that are the largest entry of some row."""
    rows: int
    prototypes: int


@dataclass(frozen=True)
class FeatureSpread:
    """Measures of a sample of the encoder's features, from `trainers.evaluation.knn.label_free`."""

    rankme: float
    feature_std: float
    rows: int
    dim: int


@dataclass(frozen=True)
class Health:
    """The verdict on a training, and what to change."""

    verdict: Verdict
    advice: str
    """The figures and the setting to change; empty if the verdict is fine or too early."""


def judge(step: int, warmup_steps: float, teacher: TeacherUse | None, features: FeatureSpread, method: MethodConfig) -> Health:
    """The verdict after `step` steps, `warmup_steps` of them warm-up; `teacher` is None for methods without prototypes.

    Where several verdicts apply, returns the one that explains the others.
    """
    if step < max(MIN_STEPS, warmup_steps):
        return Health("too early", "")
    verdict, figures = _finding(teacher, features)
    return Health(verdict, f"{figures} {_remedy(verdict, method)}".strip())


def _finding(teacher: TeacherUse | None, features: FeatureSpread) -> tuple[Verdict, str]:
    """The verdict, and a sentence with the figures behind it."""
    possible = min(features.rows, features.dim)
    if teacher is not None:
        prototypes, largest = teacher.prototypes, math.log(teacher.prototypes)
        if teacher.perplexity < min(_MIN_PERPLEXITY, prototypes / 2):
            return (
                "one prototype",
                f"The mean assignment has a perplexity of {teacher.perplexity:.1f} with {prototypes} prototypes.",
            )
        if teacher.entropy > _MAX_ENTROPY * largest:
            return "uniform assignments", f"Assignments have an entropy of {teacher.entropy:.2f}, where ln K is {largest:.2f}."
    if features.feature_std < _MIN_FEATURE_STD:
        return "dimensional collapse", f"All features point one way: their deviation is {features.feature_std:.3f}, not near 1."
    if features.rankme < _MIN_RANKME * possible:
        return "dimensional collapse", f"Features use {features.rankme:.1f} of {possible} directions (RankMe)."
    if teacher is not None and teacher.used < _MIN_USED * min(teacher.rows, teacher.prototypes):
        return "dead prototypes", f"{teacher.rows} samples use {teacher.used:.0f} of {teacher.prototypes} prototypes."
    return "fine", ""


def _remedy(verdict: Verdict, method: MethodConfig) -> str:
    """A sentence on the setting to change."""
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
