"""Evaluation: the scores of an encoder."""

from dataclasses import dataclass

from pipeline.artifacts.artifact import Artifact

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Evaluation(Artifact):
    """`evaluation.json`: a number for each measure; the statistics of the artifact are the same."""

    kind = "evaluation"
