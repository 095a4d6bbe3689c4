"""Values that come from other processes."""

from typing import Any

from curation.base.errors import UserError


def result(ray: Any, reference: Any) -> Any:
    """The value behind a Ray reference; a user's mistake made elsewhere arrives as what it was."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
