"""The search: trials under Ray Tune, judged by one pool of simulators that they share."""

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from nnit_dist.artifacts import read_json, write_json
from nnit_dist.config import RunConfig, with_values
from nnit_dist.errors import NnitError
from nnit_dist.pipeline import Run
from nnit_dist.progress import StageProgress
from nnit_dist.storage import beside
from nnit_dist.topology import Hidden, TopologySplit
from nnit_dist.training import Placement
from nnit_dist.tune import final
from nnit_dist.tune.examiner import start_examiner
from nnit_dist.tune.objective import Objective
from nnit_dist.tune.results import (
    ERROR,
    POOL,
    RUNGS,
    SEARCH,
    STOPPED,
    read_trials,
    rung_file,
    summarise,
)
from nnit_dist.tune.space import Space
from nnit_dist.tune.trial import OBJECTIVES, run_trial, trial_name

RETRIES = 2  # of a trial that fails
POOL_EVERY_S = 5.0


class SearchConfig(BaseModel):
    """How much is tried, and how it is judged."""

    model_config = ConfigDict(extra="forbid")

    trials: int = Field(24, gt=0)
    budget_s: float | None = Field(None, gt=0, description="wall time of the whole search")
    topologies: int = Field(12, gt=0, description="of validation, that a trial is judged by")
    samples: int = Field(1, gt=0, description="networks a topology")
    episodes: int = Field(40, gt=0, description="episodes a network")
    keep: float = Field(
        0.5, gt=0, lt=1, description="share of trials that go on from one rung to the next"
    )
    concurrent: int | None = Field(None, gt=0, description="trials at once; as many as fit")
    seed: int = 0


def validation_topologies(
    split: TopologySplit, widths: list[int], count: int, seed: int
) -> list[Hidden]:
    """Topologies that are neither seen nor kept for the test: every width between two of the grid.

    As deep as seen ones; no width of a test topology but those of training is used.
    """
    taken = {w for held in split.unseen.values() for hidden in held for w in hidden} | set(widths)
    between = [w for w in range(min(widths), max(widths)) if w not in taken]
    depths = sorted({len(hidden) for hidden in split.seen})
    rng = random.Random(seed)
    found: set[Hidden] = set()
    while len(found) < count:
        depth = depths[len(found) % len(depths)]
        others = [rng.choice([*widths, *between]) for _ in range(depth - 1)]
        found.add((*others, rng.choice(between)))
    return sorted(found, key=lambda hidden: (len(hidden), hidden))


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """The domains as Optuna has them."""
    return OptunaSearch.convert_search_space(space.domains)


@dataclass(frozen=True)
class Search:
    """A search of `space` around a configuration, on a finished run of it.

    Reads the run's population and hypernetwork; writes a directory a trial into `out`, and
    `out/search.json`: all trials, the best, and how loss and success go together.
    """

    space: Space
    config: RunConfig
    run: Run
    out: Path
    settings: SearchConfig

    def go(self) -> dict[str, Any]:
        """Run what is left of the search; returns its figures.

        Raises:
            NnitError: the run lacks what trials begin with, or no trial succeeded.
        """
        if not (self.run.out / "align" / "manifest.json").exists():
            raise NnitError(
                f"the search goes on from a run's hypernetwork, and {self.run.out} has none yet; "
                "run `nnit align` with this configuration first."
            )
        self._check_same()
        known = read_trials(self.out)
        finished = [trial for trial in known if trial["state"] == "done"]
        if len(known) < self.settings.trials or len(finished) < len(known):
            self._search(known)
        figures = summarise(read_trials(self.out))
        figures["test"] = self._test(figures["best"]["values"])
        write_json(self.out / SEARCH, self._about() | figures)
        return figures

    def _test(self, best: dict[str, Any]) -> dict[str, Any]:
        """The best trial and the defaults on the run's unseen topologies; pictures of the best."""
        unseen = self.run.split.unseen
        hiddens = [hidden for kind in ("combination", "width") for hidden in unseen.get(kind, [])]
        if not hiddens:
            return {}
        written = {}
        for name, values in (("best", best), ("defaults", self.space.defaults(self.config))):
            objective = self._finished(values)
            written[name] = objective.policies(hiddens, final.SAMPLES)
        if best == self.space.defaults(self.config):
            del written["defaults"]
        found = final.measure(
            written, self.out / "test", self.config.ray.actors, self.config.ray.sim_backend
        )
        final.show(written["best"], self.out / "best")
        return found

    def _finished(self, values: dict[str, Any]) -> Objective:
        """What a trial with these values has trained; one that was stopped early goes on first."""
        directory = self.out / trial_name(values)
        config = with_values(self.config, values, "the search")
        objective = OBJECTIVES[self.space.stage](config, self.config, self.run.out, directory)
        for rung in range(len(RUNGS)):
            if not rung_file(directory, rung).exists():
                objective.train(rung)
        return objective

    def _about(self) -> dict[str, Any]:
        return {
            "space": {key: str(domain) for key, domain in self.space.domains.items()},
            "distributions": {
                key: optuna.distributions.distribution_to_json(distribution)
                for key, distribution in distributions(self.space).items()
            },
            "defaults": self.space.defaults(self.config),
            "settings": self.settings.model_dump(),
            "run": str(self.run.out),
            "task": self.config.tasks[0],
        }

    def _check_same(self) -> None:
        """NnitError if `out` holds a search of another space."""
        path = self.out / SEARCH
        about = {"space": self._about()["space"], "run": str(self.run.out)}
        if path.exists() and any(read_json(path)[key] != value for key, value in about.items()):
            raise NnitError(f"{self.out} holds another search; name another directory with --out.")
        if not path.exists():
            write_json(path, self._about())

    def _search(self, known: list[dict[str, Any]]) -> None:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        actors = self.config.ray.actors or max(1, cpus // 2)
        examiner = start_examiner(
            self.config.tasks[0], self.config.control_mode, actors, self.config.ray.sim_backend
        )
        placement = self._placement(cpus - actors)
        about = {
            "config": self.config.model_copy(update={"training": placement}).model_dump(
                mode="json"
            ),
            "stage": self.space.stage,
            "run": str(self.run.out.absolute()),
            "out": str(self.out.absolute()),
            "topologies": validation_topologies(
                self.run.split, self.config.topologies.widths, self.settings.topologies, 1
            ),
            "samples": self.settings.samples,
            "episodes": self.settings.episodes,
            "examiner": examiner,
        }
        room = (cpus - actors) // (placement.cpus * placement.workers)
        with StageProgress("trials") as view:
            tune.Tuner(
                tune.with_resources(tune.with_parameters(run_trial, about=about), {"CPU": 0.001}),
                tune_config=tune.TuneConfig(
                    search_alg=self._searcher(known),
                    scheduler=tune.schedulers.ASHAScheduler(
                        time_attr="training_iteration",
                        max_t=len(RUNGS),
                        grace_period=1,
                        reduction_factor=1 / self.settings.keep,
                    ),
                    metric="success",
                    mode="max",
                    num_samples=self.settings.trials - sum(t["state"] == "done" for t in known),
                    # One more than fit: while one is measured, another trains.
                    max_concurrent_trials=self.settings.concurrent or room + 1,
                    time_budget_s=self.settings.budget_s,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(self.out.absolute()),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    verbose=0,
                    callbacks=[
                        _Watch(view, self.out, self.settings, known, examiner),
                        *self._loggers(),
                    ],
                ),
            ).fit()
        write_json(self.out / POOL, ray.get(examiner.figures.remote()))
        ray.kill(examiner)

    def _placement(self, cpus: int) -> Placement:
        """Training as configured, with fewer CPUs a worker where there are not as many.

        Raises:
            NnitError: there is not even one a worker.
        """
        placement = self.config.training
        each = min(placement.cpus, cpus // placement.workers)
        if each < 1:
            raise NnitError(
                f"simulators leave {cpus} CPUs to training.workers={placement.workers}: use fewer "
                "workers, a smaller ray.actors, or a larger ray.num_cpus."
            )
        return placement.model_copy(update={"cpus": each})

    def _loggers(self) -> list[tune.Callback]:
        """TensorBoard's files beside Tune's own, and Weights & Biases if it is wanted."""
        from ray.tune.logger import TBXLoggerCallback

        loggers: list[tune.Callback] = [TBXLoggerCallback()]
        if (mode := self.config.logging.wandb) != "off":
            from ray.air.integrations.wandb import WandbLoggerCallback

            os.environ["WANDB_MODE"] = mode  # its key comes from the environment or `wandb login`
            group = f"{self.config.name}-tune-{self.space.name}"
            directory = str(beside(self.out, "wandb").parent)
            excluded = ["networks"]
            loggers.append(
                WandbLoggerCallback("nnit_dist", group=group, excludes=excluded, dir=directory)
            )
        return loggers

    def _searcher(self, known: list[dict[str, Any]]) -> Any:
        """Optuna's sampler, told what is known. The defaults come first, or what is unfinished."""
        first = [trial["values"] for trial in known if trial["state"] != "done"]
        if not known:
            first = [self.space.defaults(self.config)]
        searcher = OptunaSearch(
            distributions(self.space),
            metric="success",
            mode="max",
            points_to_evaluate=first,
            seed=self.settings.seed + len(known),
        )
        for trial in known:
            if trial["state"] == "done":
                searcher.add_evaluated_point(trial["values"], trial["success"])
        return searcher


class _Watch(tune.Callback):
    """Feeds the progress view, and marks trials that failed or were stopped for the worse."""

    def __init__(
        self,
        view: StageProgress,
        out: Path,
        settings: SearchConfig,
        known: list[dict[str, Any]],
        examiner: Any,
    ) -> None:
        self.view, self.out, self.done = view, out, sum(t["state"] == "done" for t in known)
        self.best = max((t["success"] for t in known if t["rungs"]), default=0.0)
        self.examiner, self.asked, self.answer = examiner, 0.0, None
        self.deadline = time.monotonic() + (settings.budget_s or math.inf)
        view.add("search", settings.trials, self.done)

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks; a live view stays in this process

    def on_step_end(self, iteration, trials, **info) -> None:
        """Keep what the pool tells of itself, without waiting for it."""
        if self.answer and ray.wait([self.answer], timeout=0)[0]:
            write_json(self.out / POOL, ray.get(self.answer))
            self.answer = None
        elif not self.answer and time.monotonic() - self.asked > POOL_EVERY_S:
            self.asked, self.answer = time.monotonic(), self.examiner.figures.remote()

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self.best = max(self.best, result["success"])
        self._show(f"rung {result['rung'] + 1} of {len(RUNGS)}: {result['success']:.3f}")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        directory = self.out / trial_name(trial.config)
        in_time = time.monotonic() < self.deadline  # else it goes on the next time
        if in_time and not rung_file(directory, len(RUNGS) - 1).exists():
            write_json(directory / STOPPED, {"after": trial.last_result["rung"]})
        self.done += 1
        self._show("")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        if trial.num_failures > RETRIES:
            reason = Path(trial.error_file).read_text() if trial.error_file else "unknown"
            path = self.out / trial_name(trial.config) / ERROR
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(reason)
            self.done += 1

    def _show(self, note: str) -> None:
        self.view.update("search", self.done, f"best {self.best:.3f}  {note}")
