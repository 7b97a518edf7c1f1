"""The directory of a run, and the names of all files in it, which no other module knows.

Each stage has a subdirectory and a class for it here. Searches and baselines use the same classes,
as they keep the same files elsewhere.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnit_dist.artifacts.legacy import KINDS, upgrade_config
from nnit_dist.artifacts.records import Manifest
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import JsonObject, read_json
from nnit_dist.core.splits import TopologySplit, split_topologies
from nnit_dist.core.storage import path_of
from nnit_dist.core.zoo import Member, Zoo, best_of_trials

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"  # losses of a training, a row every few steps
_COMMANDS = ("population", "align", "train", "report")  # commands that run a single stage


@dataclass(frozen=True)
class PopulationDirectory:
    """The zoo, and a directory for each trial."""

    path: Path

    @property
    def zoo(self) -> Zoo:
        """All snapshots of all trials."""
        return Zoo(self.path / "zoo")

    def trial(self, name: str) -> Path:
        """The directory of a trial, with its progress and its checkpoint."""
        return self.path / "trials" / name

    def progress(self, trial: str) -> Path:
        """How far a trial has come (JSON)."""
        return self.trial(trial) / "progress.json"

    def trials(self) -> list[str]:
        """Names of the trials that have been measured at least once."""
        return sorted(path.parent.name for path in self.path.glob("trials/*/progress.json"))


@dataclass(frozen=True)
class AlignDirectory:
    """The hypernetwork, and the data that it is trained on."""

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
        """Episodes of networks whose actions are the average of two teachers'."""
        return self.path / "averages" / task

    def success(self, task: str) -> Path:
        """Episodes of networks that the hypernetwork wrote for each teacher."""
        return self.path / "success" / task

    def states(self, task: str, round_number: int) -> Path:
        """The distillation data of a round of training."""
        return self.path / f"states-{task}-{round_number}.safetensors"

    def last_states(self, task: str) -> Path:
        """The distillation data of the last round.

        Raises:
            NnitError: there is no distillation data of this task.
        """
        rounds = {_round_number(path): path for path in self.path.glob(f"states-{task}-*")}
        if not rounds:
            raise NnitError(
                f"{self.path.parent} lacks align/states-{task}-*.safetensors, the hypernetwork's "
                "training data. Name the directory of a finished run (`nnit run`) of this task."
            )
        return rounds[max(rounds)]

    def trainer_state(self, segment: str) -> Path:
        """The state from which training is resumed after a segment."""
        return self.path / f"{segment}.pt"

    def distillation_data(self, task: str) -> Path:
        """The best teachers of a task and some states, kept for refining networks."""
        path = self.path / f"distillation-{task}.safetensors"
        older = self.path / f"lessons-{task}.safetensors"
        return older if older.exists() and not path.exists() else path


@dataclass(frozen=True)
class TrainDirectory:
    """NNiT and the metrics of its training."""

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
    """The policies that NNiT writes, as files."""

    path: Path

    @property
    def policies(self) -> Path:
        """The policies to evaluate, in a directory for each task."""
        return self.path / "policies"

    @property
    def studies(self) -> Path:
        """The policies for the studies, in a directory for each task."""
        return self.path / "studies"


@dataclass(frozen=True)
class EvaluateDirectory:
    """Results of all networks, and their summaries."""

    path: Path

    @property
    def summaries(self) -> Path:
        """Success by method and kind of topology, task by task (JSON)."""
        return self.path / "results.json"

    @property
    def networks(self) -> Path:
        """Measured success, a row for each network (Parquet)."""
        return self.path / "results.parquet"

    def task(self, task: str) -> Path:
        """The directory of a task's measurements."""
        return self.path / task

    def episodes(self, task: str) -> Path:
        """All episodes of a task, a row for each (Parquet)."""
        return self.task(task) / "episodes"


@dataclass(frozen=True)
class ReportDirectory:
    """The report: an HTML page, its tables as Markdown, and pictures."""

    path: Path

    @property
    def page(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"

    @property
    def text(self) -> Path:
        """The tables as Markdown."""
        return self.path / "report.md"


class RunDirectory:
    """A run on disk or in an object store. Making one reads no files."""

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
        """Whether a stage is finished: it has written its manifest."""
        return (self.stage(stage) / MANIFEST).exists()

    def require(self, stage: str) -> None:
        """Raise NnitError unless a stage is finished."""
        if self.is_finished(stage):
            return
        command = f"`nnit {stage}` with the same configuration first, or " * (stage in _COMMANDS)
        raise NnitError(
            f"the {stage} stage of {self.path} is not finished; run {command}`nnit run` for all "
            "stages."
        )

    def manifest(self, stage: str) -> Manifest:
        """The manifest of a finished stage, its configuration under current names.

        Raises:
            NnitError: the stage is not finished, or its manifest is damaged.
        """
        manifest: Manifest = read_json(self.stage(stage) / MANIFEST)
        manifest["key"]["config"] = upgrade_config(manifest["key"]["config"])
        return manifest

    def figures(self, stage: str) -> JsonObject:
        """The results of a finished stage."""
        return self.manifest(stage)["figures"]

    def settings(self, stage: str) -> JsonObject:
        """The configuration that a finished stage read, under current names."""
        return self.manifest(stage)["key"]["config"]

    def tasks(self) -> list[str]:
        """The tasks of a run whose align stage is finished."""
        return self.settings("align")["tasks"]

    def zoo(self) -> Zoo:
        """The zoo of the population."""
        return self.population.zoo

    def teachers(self, task: str, min_success: float = 0.0) -> list[Member]:
        """The best snapshot of each trial of a task, if it reaches `min_success`, by trial."""
        best = best_of_trials(self.zoo().members(tasks=[task]))
        return [member for member in best if member.success_once >= min_success]

    def hypernet(self) -> Path:
        """The hypernetwork's file."""
        return self.align.hypernet

    def nnit(self) -> Path:
        """NNiT's file."""
        return self.train.nnit

    def distillation_data(self, task: str) -> Path:
        """The best teachers of a task and some states, kept for refining networks."""
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
        """Seen and unseen topologies of a run whose align stage is finished."""
        return self._split

    def summaries(self) -> dict[str, JsonObject]:
        """Results of the evaluate stage by task, kinds of topologies under current names."""
        tasks = read_json(self.evaluate.summaries)["tasks"]
        for figures in tasks.values():
            for row in figures["summaries"]:
                row["kind"] = KINDS.get(row["kind"], row["kind"])
        return tasks


def _round_number(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])
