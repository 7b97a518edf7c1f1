"""What a stage is: what it reads, what it does, and what of it makes it another run's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.splits import TopologySplit
from nnit_dist.stages.config import RunConfig

Figures = Mapping[str, object]  # what a stage came to, as its manifest keeps it


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run, ready to be done.

    Attributes:
        config: what the stage reads of the configuration; with another, it is another run's.
        inputs: what it reads of earlier stages, by label.
        work: does it, writing below a directory; returns the stage's figures.
        uses_ray: whether it needs a session of Ray.
        repeatable: whether it is done again where config or inputs have changed.
    """

    name: str
    config: dict[str, Any]
    inputs: dict[str, Path]
    work: Callable[[Path], Figures]
    uses_ray: bool = True
    repeatable: bool = False


@dataclass(frozen=True)
class RunContext:
    """What every stage is planned from: the configuration, and where the run lies."""

    config: RunConfig
    run: RunDirectory

    @cached_property
    def split(self) -> TopologySplit:
        """Seen and unseen topologies, once there is a population."""
        self.run.require("population")
        return self.config.split(self.run.zoo().topologies())

    def reads(self, *keys: str) -> dict[str, Any]:
        """These sections and values of the configuration, as JSON."""
        return self.config.model_dump(mode="json", include=set(keys))

    def earlier_run(self) -> RunDirectory | None:
        """The finished run that this one continues from, if any."""
        path = self.config.continue_from
        return None if path is None else RunDirectory(path)

    def earlier(self, artifact: Callable[[RunDirectory], Path]) -> Path | None:
        """An artifact of the run that this one continues from, if any.

        Raises:
            NnitError: that run lacks it.
        """
        before = self.earlier_run()
        if before is None:
            return None
        path = artifact(before)
        if not path.exists():
            raise NnitError(
                f"{before} lacks {path.name}; continue_from names the directory of a finished run."
            )
        return path
