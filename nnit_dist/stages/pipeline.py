"""The stages of a run, in order. A finished stage is skipped; an unfinished one is resumed."""

import contextlib
import os
from importlib import import_module
from pathlib import Path

from nnit_dist.artifacts.manifest import StageManifest
from nnit_dist.artifacts.records import Manifest
from nnit_dist.artifacts.run_directory import METRICS, RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import short_time
from nnit_dist.core.storage import beside
from nnit_dist.runtime.progress import console, quiet_libraries, styled
from nnit_dist.runtime.ray_session import ray_session
from nnit_dist.stages.config import RunConfig
from nnit_dist.stages.plan import Figures, RunContext, StagePlan
from nnit_dist.training.state import read_metrics

STAGES = ("population", "align", "train", "generate", "evaluate", "report")
_TRAINING = ("align", "train")


class Pipeline:
    """Runs the stages of one configuration in a run directory."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config, self.run = config, RunDirectory(path)
        self.context = RunContext(config, self.run)
        self._session: contextlib.ExitStack | None = None  # of Ray, shared by several stages

    def do_all(self) -> dict[str, Manifest]:
        """Do every stage in one session of Ray; returns the manifests by stage.

        Raises:
            NnitError: a stage fails. Finished stages are kept.
        """
        self._check_gpus("train")
        with contextlib.ExitStack() as self._session:
            manifests = {stage: self.do(stage) for stage in STAGES}
        self._session = None
        return manifests

    def do(self, stage: str) -> Manifest:
        """Do one stage, unless it is already done; returns its manifest.

        Raises:
            NnitError: an earlier stage is missing, this one fails, or its directory belongs to
                another run.
        """
        if stage in _TRAINING:
            self._check_gpus(stage)
        plan: StagePlan = import_module(f"nnit_dist.stages.{stage}").plan(self.context)
        manifest = StageManifest(
            stage, self.run.stage(stage), plan.config, plan.inputs, repeatable=plan.repeatable
        )
        if manifest.is_done():
            _say_done(stage, f"already done: {manifest.directory}")
            return self.run.manifest(stage)
        plan.check()
        self._check_cpus(stage)
        manifest.begin()
        console.print(styled(("•", "bold"), f" {stage}"))
        finished = manifest.finish(self._work(plan, manifest.directory))
        self._log(stage, finished["figures"])
        _say_done(stage, f"{short_time(finished['seconds'])}, wrote {manifest.directory}")
        return finished

    def _work(self, plan: StagePlan, directory: Path) -> Figures:
        log = beside(self.run.path, "logs") / f"{plan.name}.log"
        with quiet_libraries(log), contextlib.ExitStack() as stack:
            if plan.uses_ray:
                where = self.config.ray
                session = ray_session(where.address, where.num_cpus, claim=self.run.path)
                (self._session or stack).enter_context(session)
            return plan.work(directory)

    def _check_gpus(self, stage: str) -> None:
        """Raise NnitError if a local Ray would wait forever for the GPUs that `stage` needs."""
        training = self.config.training
        wanted = (training.min_workers or training.workers) if training.gpu else 0
        if not wanted or self.config.ray.address or self.run.is_finished(stage):
            return
        import torch

        if (count := torch.cuda.device_count()) < wanted:
            raise NnitError(
                f"training.gpu asks for {wanted} GPU(s), a worker each, and torch finds {count} on "
                "this machine. Set training.gpu=false, or ray.address to a cluster that has some."
            )

    def _check_cpus(self, stage: str) -> None:
        """Raise NnitError if a local Ray would wait forever for the CPUs that `stage` needs."""
        where, training = self.config.ray, self.config.training
        if where.address or stage not in ("population", *_TRAINING):
            return
        key, wanted = "population.cpus", self.config.population.cpus
        if stage in _TRAINING:
            key = "training.cpus"
            wanted = training.cpus * (training.min_workers or training.workers)
        if wanted > max(cpus := where.num_cpus or os.cpu_count() or 1, 2):
            raise NnitError(
                f"{key} asks for {wanted:g} CPUs, all workers together, and a local Ray has {cpus} "
                "here. Ask for fewer, or name a cluster with ray.address."
            )

    def _log(self, stage: str, figures: Figures) -> None:
        """Log curves and figures to Weights & Biases, grouped by run, if it is switched on."""
        if self.config.logging.wandb == "off":
            return
        import wandb

        numbers = {f"{stage}/{k}": v for k, v in figures.items() if isinstance(v, int | float)}
        run = wandb.init(
            project="nnit_dist",
            group=self.config.name,
            name=f"{self.config.name}-{stage}",
            mode=self.config.logging.wandb,
            dir=str(beside(self.run.path, "wandb").parent),  # wandb adds its own name
            config=self.config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )
        for row in read_metrics(self.run.stage(stage) / METRICS):
            run.log({f"{stage}/{k}": v for k, v in row.items()}, step=int(row["step"]))
        run.summary.update(numbers)
        run.finish()


def _say_done(stage: str, what: str) -> None:
    console.print(styled(("✓", "green"), f" {stage:<11} {what}"))
