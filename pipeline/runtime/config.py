"""Settings of resources."""

from pydantic import Field

from curation.base.config import Config


class Resources(Config):
    """What a stage may use at once, over all machines; unset: all of the cluster. No result depends on it."""

    cpus: int | None = Field(default=None, ge=1)
    """Number of CPU cores."""
    gpus: int | None = Field(default=None, ge=0)
    """Number of GPUs; 0 keeps a stage off them."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory that each task or rank is granted, in GiB: a machine is given no more of them than it has memory for."""
    machines: int | None = Field(default=None, ge=1)
    """Number of machines that the ranks of a stage are spread over evenly."""

    def override(self, other: "Resources | None") -> "Resources":
        """These resources with what `other` sets in their place."""
        return self if other is None else self.model_copy(update=other.model_dump(exclude_none=True))
