"""Encoders in settings: known by the content of their weights, not by where these lie."""

from pathlib import Path
from typing import Any

from pipeline.artifacts.manifest import user_file_digest


def weights_by_content(fields: dict[str, Any], encoder: Any) -> dict[str, Any]:
    """Fingerprint fields with a digest in place of the path of the weights of `encoder`: a copy is the same weights."""
    weights: Path | None = getattr(encoder, "weights", None)
    if weights is None:
        return fields
    return fields | {"encoder": fields["encoder"] | {"weights": user_file_digest(weights)}}
