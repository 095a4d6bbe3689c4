"""label: pseudo-labels for every row of the pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from curation.labelers.config import LabelConfig
from curation.labelers.labels import label
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.labels import PseudoLabels, write_labels
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.runtime.config import Resources
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput


@dataclass(frozen=True)
class Label(Stage):
    """What a labeler says of each row."""

    config: LabelConfig
    name = "label"
    makes = PseudoLabels
    inputs: ClassVar[Mapping[str, Input]] = {"clusters": Input(Clusters)}
    resources = Resources(gpus=0)

    def settings(self) -> dict[str, Any]:
        return self.config.fingerprint_fields()

    def make(self, context: StageContext) -> StageOutput:
        part, classes = context.call(label_pool, self.config, context.inputs["clusters"].directory, context.out)
        return StageOutput([part], {"rows": part.num_rows, "classes": classes})

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        rows = inputs["clusters"].rows
        return Estimate(rows, num_bytes=16 * rows)

    def describe(self, manifest: Manifest) -> str:
        return f"{manifest.statistics['rows']:,} rows, labels " + ", ".join(
            f"{num:,}" for num in manifest.statistics["classes"].values()
        )


def label_pool(config: LabelConfig, clusters: Path, out: Path) -> tuple[Part, dict[str, int]]:
    """Write the labels of a clustering; the part, and the classes of each column."""
    opened = Clusters.open(clusters)
    labels = label(config, opened.hierarchy())
    return write_labels(out, labels, opened.row_ids()), labels.num_classes
