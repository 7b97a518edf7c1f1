"""Configuration that both trainers share: task weights and placement."""

from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from nnit_dist.core.errors import NnitError, nearest

TaskWeights = Annotated[
    dict[str, PositiveInt],
    Field(
        description="How often each task is trained on, relative to the others; a task that is not "
        "named has a weight of 1."
    ),
]


class Placement(BaseModel):
    """Where training runs: how many workers of Ray Train, and the resources of each."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    workers: int = Field(1, gt=0, description="Workers of Ray Train, which share every step.")
    min_workers: int | None = Field(
        None,
        gt=0,
        description="Go on with as few workers while nodes are lost or do not come, and grow again "
        "later. By default training waits for all workers.",
    )
    gpu: bool = Field(False, description="Whether each worker trains on a GPU.")
    cpus: int = Field(2, gt=0, description="CPUs of each worker.")
    loaders: int | None = Field(
        None,
        ge=0,
        description="Processes of each worker that draw batches ahead. By default none on a CPU, "
        "and beside a GPU one less than the worker's CPUs.",
    )
    retries: int = Field(
        3,
        ge=0,
        description="How often training goes on from its last checkpoint after a failure.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Placement":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} are more than workers={self.workers}")
        return self

    @property
    def loaders_a_worker(self) -> int:
        """Processes of each worker that draw batches: `loaders`, or its default."""
        if self.loaders is not None:
            return self.loaders
        return self.cpus - 1 if self.gpu else 0


def check_task_weights(tasks: Collection[str], weights: dict[str, int]) -> None:
    """Raise NnitError if there is a weight for a task that is not among `tasks`."""
    if unknown := sorted(weights.keys() - set(tasks)):
        raise NnitError(
            f"there is a weight for {unknown[0]}, which is not among the tasks."
            f"{nearest(unknown[0], list(tasks))}"
        )
