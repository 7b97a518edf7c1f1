"""A run's directory: the only place that knows the names of the files in it.

One subdirectory a stage. What a stage leaves has a class of its own here, since searches and
baselines keep the same files in directories of their own.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnit_dist.artifacts.legacy import KINDS, upgrade_config
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.splits import TopologySplit, split_topologies
from nnit_dist.core.storage import path_of
from nnit_dist.core.zoo import Member, Zoo, best_of_trials

MANIFEST = "manifest.json"
_COMMANDS = ("population", "align", "train", "report")  # that do one stage of a configuration
METRICS = "metrics.jsonl"  # of a training: one row every few steps


@dataclass(frozen=True)
class PopulationDirectory:
    """The zoo, and a directory for each trial."""

    path: Path

    @property
    def zoo(self) -> Zoo:
        """All snapshots."""
        return Zoo(self.path / "zoo")

    def trial(self, name: str) -> Path:
        """A trial's directory: its progress and its checkpoint."""
        return self.path / "trials" / name

    def progress(self, trial: str) -> Path:
        """How far a trial is."""
        return self.trial(trial) / "progress.json"

    def trials(self) -> list[str]:
        """Names of the trials that have been measured at least once."""
        return sorted(path.parent.name for path in self.path.glob("trials/*/progress.json"))


@dataclass(frozen=True)
class AlignDirectory:
    """The hypernetwork, and what it learns on."""

    path: Path

    @property
    def hypernet(self) -> Path:
        """The trained hypernetwork of all tasks."""
        return self.path / "ghn.safetensors"

    @property
    def metrics(self) -> Path:
        """Losses of its training."""
        return self.path / METRICS

    def averages(self, task: str) -> Path:
        """Episodes of averages of two teachers."""
        return self.path / "averages" / task

    def success(self, task: str) -> Path:
        """Episodes of the networks that imitate each teacher."""
        return self.path / "success" / task

    def states(self, task: str, round_number: int) -> Path:
        """The distillation data that a round of training reads."""
        return self.path / f"states-{task}-{round_number}.safetensors"

    def last_states(self, task: str) -> Path:
        """The distillation data of the last round.

        Raises:
            NnitError: there is none.
        """
        rounds = {_round_number(path): path for path in self.path.glob(f"states-{task}-*")}
        if not rounds:
            raise NnitError(
                f"{self.path.parent} lacks align/states-{task}-*.safetensors, which the "
                "hypernetwork learnt on. "
                "Name the directory of a finished run (`nnit run`) of this task."
            )
        return rounds[max(rounds)]

    def trainer_state(self, segment: str) -> Path:
        """What training goes on from after a segment."""
        return self.path / f"{segment}.pt"

    def distillation_data(self, task: str) -> Path:
        """The best teachers of a task and some of the states to act in, kept for refining."""
        path = self.path / f"distillation-{task}.safetensors"
        older = self.path / f"lessons-{task}.safetensors"
        return older if older.exists() and not path.exists() else path


@dataclass(frozen=True)
class TrainDirectory:
    """NNiT and its training."""

    path: Path

    @property
    def nnit(self) -> Path:
        """The trained model of all tasks."""
        return self.path / "nnit.safetensors"

    @property
    def metrics(self) -> Path:
        """Losses of its training."""
        return self.path / METRICS


@dataclass(frozen=True)
class GenerateDirectory:
    """Policy files."""

    path: Path

    @property
    def policies(self) -> Path:
        """What is measured, a directory a task."""
        return self.path / "policies"

    @property
    def studies(self) -> Path:
        """What the studies ask for, a directory a task."""
        return self.path / "studies"


@dataclass(frozen=True)
class EvaluateDirectory:
    """Results, by network and in summary."""

    path: Path

    @property
    def summaries(self) -> Path:
        """Success by method and kind of topology, task by task (JSON)."""
        return self.path / "results.json"

    @property
    def networks(self) -> Path:
        """One row for each network that was measured (Parquet)."""
        return self.path / "results.parquet"

    def task(self, task: str) -> Path:
        """What was measured of one task; its episodes are in `episodes`."""
        return self.path / task

    def episodes(self, task: str) -> Path:
        """One row for each episode (Parquet)."""
        return self.task(task) / "episodes"


@dataclass(frozen=True)
class ReportDirectory:
    """The report: a page, its tables in Markdown, and pictures."""

    path: Path

    @property
    def page(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"

    @property
    def text(self) -> Path:
        """Its tables, to paste."""
        return self.path / "report.md"


class RunDirectory:
    """A run on disk or in an object store. Nothing is read before it is asked for."""

    def __init__(self, path: Path | str) -> None:
        self.path = path_of(path)
        self.population = PopulationDirectory(self.path / "population")
        self.align = AlignDirectory(self.path / "align")
        self.train = TrainDirectory(self.path / "train")
        self.generate = GenerateDirectory(self.path / "generate")
        self.evaluate = EvaluateDirectory(self.path / "evaluate")
        self.report = ReportDirectory(self.path / "report")

    def __str__(self) -> str:
        return str(self.path)

    def stage(self, stage: str) -> Path:
        """The directory of a stage."""
        return self.path / stage

    def is_finished(self, stage: str) -> bool:
        """Whether a stage has written its manifest."""
        return (self.stage(stage) / MANIFEST).exists()

    def require(self, stage: str) -> None:
        """Raise NnitError unless a stage is finished."""
        if self.is_finished(stage):
            return
        command = f"`nnit {stage}` with the same configuration first, or " * (stage in _COMMANDS)
        raise NnitError(
            f"the {stage} stage of {self.path} is not finished; run {command}`nnit run` for the "
            "whole chain."
        )

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage, its configuration under today's names."""
        manifest = read_json(self.stage(stage) / MANIFEST)
        key = manifest["key"]
        return manifest | {"key": key | {"config": upgrade_config(key["config"])}}

    def figures(self, stage: str) -> dict[str, Any]:
        """What a finished stage came to."""
        return self.manifest(stage)["figures"]

    def settings(self, stage: str) -> dict[str, Any]:
        """The configuration that a finished stage read, under today's names."""
        return self.manifest(stage)["key"]["config"]

    def tasks(self) -> list[str]:
        """The tasks of a run whose alignment is finished."""
        return self.settings("align")["tasks"]

    def zoo(self) -> Zoo:
        """The population."""
        return self.population.zoo

    def teachers(self, task: str, min_success: float = 0.0) -> list[Member]:
        """The best snapshot of every trial of a task that reaches `min_success`, by trial."""
        best = best_of_trials(self.zoo().members(tasks=[task]))
        return [member for member in best if member.success_once >= min_success]

    def hypernet(self) -> Path:
        """The hypernetwork's file."""
        return self.align.hypernet

    def nnit(self) -> Path:
        """NNiT's file."""
        return self.train.nnit

    def distillation_data(self, task: str) -> Path:
        """The best teachers of a task and some of the states to act in, kept for refining."""
        return self.align.distillation_data(task)

    @cached_property
    def _split(self) -> TopologySplit:
        settings = self.settings("align")
        grid, trained = settings["topologies"], self.zoo().topologies()
        return split_topologies(
            grid["widths"],
            grid["depths"],
            unseen_widths=grid["unseen_widths"],
            counts=grid["unseen"],
            seed=settings["seed"],
            trained=trained,
        )

    def split(self) -> TopologySplit:
        """Seen and unseen topologies of a run whose alignment is finished."""
        return self._split

    def summaries(self) -> dict[str, Any]:
        """Figures of the evaluation by task, kinds of topologies under today's names."""
        tasks = read_json(self.evaluate.summaries)["tasks"]
        for figures in tasks.values():
            for row in figures["summaries"]:
                row["kind"] = KINDS.get(row["kind"], row["kind"])
        return tasks


def _round_number(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])
