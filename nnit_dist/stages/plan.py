"""What a stage is: what it reads, what it does, and the settings that tie it to its run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.splits import TopologySplit
from nnit_dist.stages.config import RunConfig

Figures = Mapping[str, object]  # results of a stage, as its manifest stores them


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run, ready to be done.

    Attributes:
        config: the part of the configuration that the stage reads.
        inputs: files and directories of earlier stages that it reads, by label.
        work: does the stage, writes into the given directory and returns the stage's figures.
        check: raises NnitError, before Ray starts, if the stage cannot work here.
        uses_ray: whether it needs a session of Ray.
        repeatable: what happens if config or inputs differ from those of the finished stage. If
            True, the stage is done again; otherwise its directory belongs to another run.
    """

    name: str
    config: dict[str, Any]
    inputs: dict[str, Path]
    work: Callable[[Path], Figures]
    check: Callable[[], None] = lambda: None
    uses_ray: bool = True
    repeatable: bool = False


@dataclass(frozen=True)
class RunContext:
    """What every stage is planned from: the configuration and the run directory."""

    config: RunConfig
    run: RunDirectory

    @cached_property
    def split(self) -> TopologySplit:
        """Seen and unseen topologies; raises NnitError before the population is finished."""
        self.run.require("population")
        return self.config.split(self.run.zoo().topologies())

    def reads(self, *keys: str) -> dict[str, Any]:
        """The sections and values of the configuration with these keys, as JSON."""
        return self.config.model_dump(mode="json", include=set(keys))

    def earlier_run(self) -> RunDirectory | None:
        """The finished run that this one continues from, if any."""
        path = self.config.continue_from
        return None if path is None else RunDirectory(path)

    def earlier(self, artifact: Callable[[RunDirectory], Path]) -> Path | None:
        """The path of an artifact of the run that this one continues from, if any.

        Raises:
            NnitError: that run does not have the artifact.
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
