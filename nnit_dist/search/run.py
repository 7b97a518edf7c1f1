"""The search: trials under Ray Tune, judged by one pool of simulators that they share."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from optuna.distributions import distribution_to_json
from ray import tune

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash, read_json, write_json
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import TopologySplit
from nnit_dist.core.storage import beside
from nnit_dist.core.task import TaskInfo
from nnit_dist.population.train import trial_resources
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.queue import Job
from nnit_dist.rollout.recording import record
from nnit_dist.runtime.progress import StageProgress, console
from nnit_dist.runtime.ray_session import may_grow, ray_session
from nnit_dist.search import final
from nnit_dist.search.config import SearchConfig
from nnit_dist.search.objective import Objective
from nnit_dist.search.records import (
    BestTrial,
    FinalFigures,
    GroupName,
    PoolFigures,
    SearchDescription,
    SearchFigures,
    SearchIdentity,
    TrialRecord,
    Values,
)
from nnit_dist.search.results import POOL, RUNGS, SEARCH, read_trials, rung_file, summarize_search
from nnit_dist.search.schedule import Population, asha, check_pbt, first_ones, fresh_search
from nnit_dist.search.server import evaluation_server
from nnit_dist.search.space import Space
from nnit_dist.search.trial import OBJECTIVES, SearchContext, run_trial, trial_name
from nnit_dist.search.validation import validation_topologies
from nnit_dist.search.watch import RETRIES, Watch
from nnit_dist.stages.config import RunConfig, with_values
from nnit_dist.training.config import Placement


@dataclass(frozen=True)
class Search:
    """A search of `space` around a configuration, on a finished run of it.

    Reads the run's hypernetwork and its distillation data. Writes one directory per trial, and
    `out/search.json`: how trials are judged, the best trial, and how loss relates to success.
    """

    space: Space
    config: RunConfig
    run: RunDirectory
    out: Path
    settings: SearchConfig

    def go(self) -> SearchFigures:
        """Run the unfinished part of the search; return its figures.

        Raises:
            NnitError: the run lacks files that trials start from, `out` holds another search, or
                no trial finished.
        """
        aligned = self.run.is_finished("align")
        if self.space.stage != "population" and not aligned:
            raise NnitError(
                f"the search goes on from a run's hypernetwork, and {self.run} has none yet; "
                "run `nnit align` with this configuration first."
            )
        self._objective(self.config, self.out)  # raises if the run lacks files
        if self.settings.scheduler == "pbt":
            check_pbt(self.space, self.settings.trials)
            first_ones(self.space, self.config, self.settings.trials, self.settings.seed)
        description = self._description()
        write_json(self.out / SEARCH, description)
        trials = read_trials(self.out)
        left = self._left(trials)
        where = self.config.ray
        ray_of = partial(ray_session, where.address, where.num_cpus, claim=self.out)
        if left > 0:
            with ray_of():
                # Trials of PBT report their finished rungs again.
                self._search([] if self.settings.scheduler == "pbt" else trials, left)
        figures = summarize_search(read_trials(self.out))
        write_json(self.out / SEARCH, {**description, **figures})
        with ray_of():  # a new Ray job: resources of stopped trials are free
            figures["test"] = self._test(figures["best"])
        write_json(self.out / SEARCH, {**description, **figures})
        return figures

    def _description(self) -> SearchDescription:
        """Describe the search; NnitError if `out` holds another one."""
        judged = self.settings.model_dump(exclude={"trials", "budget_s", "seed", "scheduler"})
        identity: SearchIdentity = {
            "distributions": {k: distribution_to_json(d) for k, d in self.space.domains.items()},
            "stage": self.space.stage,
            "scheduler": self.settings.scheduler,
            "rungs": list(self._rungs),
            "task": self.config.tasks[0],
            "config": self.config.model_dump(mode="json", exclude={"training", "ray", "logging"}),
            "judged": judged,
            "hypernetwork": None
            if self.space.stage == "population"
            else content_hash(self.run.hypernet()),
        }
        path = self.out / SEARCH
        if path.exists():
            described = read_json(path)
            if changed := [key for key, value in identity.items() if described.get(key) != value]:
                raise NnitError(
                    f"{self.out} holds another search: its {changed[0]} is another. Name another "
                    "directory with --out."
                )
        return {
            **identity,
            "settings": self.settings.model_dump(),
            "run": str(self.run),
            "defaults": self.space.defaults(self.config),
        }

    def _search(self, earlier: list[TrialRecord], left: int) -> None:
        settings = self.settings
        simulators, actors = self._simulators()
        resources, placement, room = self._room(0 if simulators.on_gpu else actors)
        context = self._context(placement)
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # an interruption ends the command
        began, worked = time.monotonic(), time.process_time()
        with (
            evaluation_server(simulators, actors, may_grow()) as server,
            StageProgress("trials") as view,
        ):
            trainable = tune.with_parameters(run_trial, context=context, server=server)
            watch = Watch(
                view,
                self.out,
                total=settings.trials,
                trials=earlier,
                rungs=len(self._rungs),
                server=server,
            )
            tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space=self.space.given if settings.scheduler == "pbt" else None,
                tune_config=self._tune_config(earlier, left, room),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(self.out.absolute()),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    stop={"training_iteration": len(self._rungs)},  # none inherits after the last
                    verbose=0,
                    callbacks=[watch, *self._loggers()],
                ),
            ).fit()
            driver = (time.process_time() - worked) / (time.monotonic() - began)
            pool: PoolFigures = ray.get(server.figures.remote())
        write_json(self.out / POOL, {**pool, "driver": round(driver, 3)})

    def _simulators(self) -> tuple[Simulators, int]:
        """Simulators, and how many: `ray.actors`, else every GPU or half of the CPUs for them."""
        config = self.config
        trains = config.population if self.space.stage == "population" else config.training
        # A pool on GPUs would keep them from the trials.
        backend = "physx_cpu" if trains.gpu else config.ray.sim_backend
        simulators = Simulators(config.tasks[0], config.control_mode, sim_backend=backend)
        room = max(1, simulators.room())
        return simulators, config.ray.actors or (room if simulators.on_gpu else max(1, room // 2))

    def _room(self, simulating: int) -> tuple[Any, Placement, int]:
        """Resources of a trial, placement of its training, and how many trials run at once.

        Simulators hold `simulating` CPUs. In a cluster that may grow, at least one trial runs: its
        nodes are asked for.

        Raises:
            NnitError: simulators leave too few CPUs to a trial, and the cluster cannot grow.
        """
        cpus = int(ray.cluster_resources().get("CPU", 0)) - simulating
        least = 1 if may_grow() else 0
        if self.space.stage == "population":
            # A trial simulates and learns in its own process.
            each = self.config.population.cpus
            room = max(int(cpus / each), least)
            if room < 1:
                raise NnitError(
                    f"simulators leave {cpus} CPUs to trials of population.cpus={each:g}: "
                    "use a smaller ray.actors, or a larger ray.num_cpus."
                )
            return trial_resources(self.config.population), self.config.training, room
        # A trial's own process takes no CPU: its training and the pool do.
        resources = tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])
        placement = self._placement(cpus)
        room = max(cpus // (placement.cpus * placement.workers), least)
        if placement.gpu:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            room = min(room, max(1, gpus // placement.workers))
        return resources, placement, room

    def _context(self, placement: Placement) -> SearchContext:
        """Settings that all trials share."""
        config = self.config.model_dump(mode="json", exclude_unset=True)
        return SearchContext(
            config=RunConfig.model_validate(config | {"training": placement.model_dump()}),
            stage=self.space.stage,
            rungs=self._rungs,
            run=str(self.run.path.absolute()),
            out=str(self.out.absolute()),
            topologies=validation_topologies(
                self._split(), self.config.topologies.widths, self.settings.topologies, 1
            ),
            samples=self.settings.samples,
            episodes=self.settings.episodes,
        )

    @property
    def _rungs(self) -> tuple[float, ...]:
        return RUNGS[self.settings.scheduler]

    def _left(self, trials: list[TrialRecord]) -> int:
        """Number of trials to start or resume.

        Trials of PBT depend on each other: all resume, and at once report their finished rungs.
        """
        if self.settings.scheduler == "pbt":
            done = sum(trial["complete"] or trial["state"] == "failed" for trial in trials)
            return 0 if done >= self.settings.trials else self.settings.trials
        return self.settings.trials - sum(trial["state"] != "open" for trial in trials)

    def _tune_config(self, earlier: list[TrialRecord], left: int, room: int) -> tune.TuneConfig:
        """Tune's configuration: `left` trials are left, and `room` of them fit at once."""
        settings, seed = self.settings, self.settings.seed
        make = partial(
            tune.TuneConfig,
            metric="success",
            mode="max",
            num_samples=left,
            time_budget_s=settings.budget_s,
        )
        if settings.scheduler == "pbt":
            return make(
                search_alg=first_ones(self.space, self.config, settings.trials, seed),
                scheduler=Population(self.space, seed),
            )
        return make(
            search_alg=fresh_search(self.space, self.config, earlier, seed),
            scheduler=asha(earlier, self.out),
            # One more than fit: while one is measured, another trains.
            max_concurrent_trials=room + 1,
        )

    def _split(self) -> TopologySplit:
        """Topology split of the run, or of the configuration for populations, which need no run."""
        return self.config.split() if self.space.stage == "population" else self.run.split()

    def _placement(self, cpus: int) -> Placement:
        """Placement of training as configured, with fewer CPUs per worker if `cpus` are too few.

        Training does not retry after a failure: Tune retries the whole trial.

        Raises:
            NnitError: there is less than one CPU per worker, and the cluster cannot grow.
        """
        placement = self.config.training
        each = min(placement.cpus, cpus // placement.workers)
        if each < 1 and may_grow():
            each = placement.cpus  # on nodes that the cluster is asked for
        if each < 1:
            raise NnitError(
                f"simulators leave {cpus} CPUs to training.workers={placement.workers}: use fewer "
                "workers, a smaller ray.actors, or a larger ray.num_cpus."
            )
        return placement.model_copy(update={"cpus": each, "retries": 0})

    def _loggers(self) -> list[tune.Callback]:
        """Loggers for TensorBoard and, if configured, Weights & Biases."""
        from ray.tune.logger import TBXLoggerCallback

        loggers: list[tune.Callback] = [TBXLoggerCallback()]
        if (mode := self.config.logging.wandb) != "off":
            from ray.air.integrations.wandb import WandbLoggerCallback

            os.environ["WANDB_MODE"] = mode  # its key comes from the environment or `wandb login`
            loggers.append(
                WandbLoggerCallback(
                    "nnit_dist",
                    group=f"{self.config.name}-tune-{self.space.name}",
                    upload_timeout=60,
                    mode=mode,
                    dir=str(beside(self.out, "wandb").parent),
                )
            )
        return loggers

    def _test(self, best: BestTrial) -> FinalFigures:
        """Measure the best trial and the defaults on unseen topologies; draw the best trial."""
        unseen, defaults = self._split().unseen, self.space.defaults(self.config)
        hiddens = [hidden for kind in ("combination", "width") for hidden in unseen.get(kind, [])]
        if not hiddens:
            return {}
        compared: dict[GroupName, tuple[str, Values]] = {"best": (best["name"], best["values"])}
        if (name := trial_name(defaults)) != best["name"]:
            compared["defaults"] = (name, defaults)
        written: dict[GroupName, list[Policy]] = {}
        for group, trial in compared.items():
            try:
                written[group] = self._finished(*trial).policies(hiddens, final.SAMPLES)
            except NnitError as error:
                if group == "best":
                    raise
                console.print(f"not compared with the defaults, which do not train: {error}")
        where = self.config.ray
        evaluator = Evaluator(where.actors, where.sim_backend, title="test")
        figures = final.measure(written, self.out / "test", evaluator)
        final.show(written["best"], self.out / "best")
        return figures

    def _finished(self, name: str, values: Values) -> Objective:
        """Objective of a trial; trains the rungs that a stopped trial lacks."""
        directory = self.out / name
        objective = self._objective(with_values(self.config, values, "the search"), directory)
        for rung in range(len(self._rungs)):
            if not rung_file(directory, rung).exists():
                objective.train(rung, self._record)
        return objective

    def _record(self, task: TaskInfo, jobs: list[Job], title: str) -> list[np.ndarray]:
        return record(self._simulators()[0], self.config.ray.actors, jobs)

    def _objective(self, config: RunConfig, directory: Path) -> Objective:
        return OBJECTIVES[self.space.stage](
            config, self.config, self.run, directory, rungs=self._rungs
        )
