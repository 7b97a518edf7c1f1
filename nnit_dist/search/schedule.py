"""Which values a search tries, and which trials it stops: Optuna with ASHA, or PBT."""

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.searcher import Searcher

from nnit_dist.core.errors import NnitError
from nnit_dist.search.records import TrialRecord, Values
from nnit_dist.search.results import RUNGS, last_success, rung_file
from nnit_dist.search.space import Space
from nnit_dist.search.trial import TAKEOVER, trial_name
from nnit_dist.stages.config import RunConfig

ATTEMPTS = 50  # at drawing values that no trial has
# PBT cannot vary these: they fix the shape of weights, the optimizer, or the cost of a step.
FIXED = (
    "nnit.transformer.",
    "nnit.patch",
    "nnit.topologies_per_step",
    "nnit.networks_per_topology",
    "nnit.weight_decay",
)


class FreshSearch(OptunaSearch):
    """Optuna's sampler, which draws again if it suggests values that were already tried.

    Trials with equal values share a directory, so two of them must not run at once.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.tried: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Suggest values that no trial has; repeated ones are reported to Optuna as failed."""
        for _ in range(ATTEMPTS):
            values = super().suggest(trial_id)
            if values is None or trial_name(values) not in self.tried:
                self.tried |= {trial_name(values)} if values else set()
                return values
            study: Any = self._ot_study
            study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        return Searcher.FINISHED


def fresh_search(
    space: Space, config: RunConfig, trials: list[TrialRecord], seed: int
) -> FreshSearch:
    """Optuna's sampler with results of finished trials; defaults and open trials come first."""
    defaults = space.defaults(config)
    first = [trial["values"] for trial in trials if trial["state"] == "open"]
    if trial_name(defaults) not in {trial["name"] for trial in trials}:
        first.insert(0, defaults)
    searcher = FreshSearch(
        space.domains,
        metric="success",
        mode="max",
        points_to_evaluate=first or None,
        seed=seed + len(trials),
    )
    for trial in trials:
        searcher.tried.add(trial["name"])
        if trial["state"] == "done":
            searcher.add_evaluated_point(trial["values"], last_success(trial))
    searcher.tried -= {trial_name(values) for values in first}
    return searcher


class Halving(tune.schedulers.AsyncHyperBandScheduler):
    """ASHA, which stops the worse half at every rung but the last.

    A resumed trial reports its finished rungs again. If it has already begun the next rung, it
    continues, since ASHA decided so when the rung was first reported.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(
            time_attr="training_iteration",
            max_t=len(RUNGS["asha"]),
            grace_period=1,
            reduction_factor=2,
        )
        self.out = out

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
        """Return ASHA's decision, but let a trial finish a rung that it has begun."""
        decision = super().on_trial_result(tune_controller, trial, result)
        directory, following = self.out / result["directory"], result["rung"] + 1
        began = rung_file(directory, following), directory / f"rung-{following}"
        return self.CONTINUE if any(path.exists() for path in began) else decision


def asha(trials: list[TrialRecord], out: Path) -> Halving:
    """ASHA for the search in `out`, with the results of its finished trials."""
    scheduler = Halving(out)
    for milestone, recorded in scheduler._brackets[0]._rungs:
        recorded |= {
            trial["name"]: trial["rungs"][int(milestone) - 1]["success"]
            for trial in trials
            if trial["state"] == "done" and len(trial["rungs"]) >= milestone
        }
    return scheduler


def check_pbt(space: Space, trials: int) -> None:
    """Check that PBT can search a space.

    Raises:
        NnitError: it cannot search this space, or there are fewer than two trials.
    """
    if space.stage != "train":
        raise NnitError(
            f"PBT goes on with another trial's weights, which only NNiT's training does; "
            f"{space.name} has STAGE={space.stage!r}: search it with --scheduler asha."
        )
    if fixed := [key for key in space.domains if key.startswith(FIXED)]:
        raise NnitError(
            f"PBT goes on with another trial's state, which does not fit another {fixed[0]}: "
            "leave it out (tuning/nnit_pbt.py), or search with --scheduler asha."
        )
    if trials < 2:
        raise NnitError("PBT needs at least 2 trials, of which the worse take over the better.")


def first_ones(space: Space, config: RunConfig, count: int, seed: int) -> BasicVariantGenerator:
    """PBT's first trials: the defaults and random other values, all different.

    Raises:
        NnitError: the space has fewer than `count` different values.
    """
    chance, points = np.random.RandomState(seed), [space.defaults(config)]
    for _ in range(ATTEMPTS * count):
        if len(points) == count:
            break
        point = {k: domain.sample(random_state=chance) for k, domain in space.given.items()}
        if trial_name(point) not in {trial_name(known) for known in points}:
            points.append(point)
    if len(points) < count:
        raise NnitError(
            f"{space.name} has {len(points)} different values, and PBT begins with {count} trials: "
            "use fewer --trials, or a larger SPACE."
        )
    return BasicVariantGenerator(points_to_evaluate=points, random_state=seed)


class Population(tune.schedulers.PopulationBasedTraining):
    """Population-based training (PBT, arXiv 1711.09846).

    After each rung, the worst quarter of trials continues with the weights of one of the best,
    with values close to those of that trial or drawn at random.

    Trials wait for each other, and random numbers are seeded at every decision. So a restarted
    search decides the same, and finds finished rungs in its trials' directories. Unlike in Tune's
    own PBT, which would wait forever, no trial waits for one that failed.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(
            time_attr="training_iteration",
            perturbation_interval=1,
            hyperparam_mutations={
                key: list(domain.choices)
                if isinstance(domain := space.domains[key], CategoricalDistribution)
                else given
                for key, given in space.given.items()
            },
            custom_explore_fn=self._explored,
            synch=True,
        )
        self.space, self.seed, self.decision = space, seed, ""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
        """Return PBT's decision; no trial waits for one that failed."""
        for failed in (t for t in tune_controller.get_trials() if t.status == t.ERROR):
            state: Any = self._trial_state[failed]
            state.last_train_time = self._next_perturbation_sync
        return super().on_trial_result(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return PBT's choice; if all trials wait for one that failed, perturb them first."""
        chosen = super().choose_trial_to_run(tune_controller)
        left = [t for t in tune_controller.get_trials() if not t.is_finished()]
        if chosen is None and left and all(t.status == t.PAUSED for t in left):
            # The last trial that they waited for has failed.
            result: Any = self._trial_state[left[0]].last_result
            self.on_trial_result(tune_controller, left[0], result)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _checkpoint_or_exploit(self, trial: Any, *args: Any) -> None:
        states = self._trial_state
        self.decision = f"{list(states).index(trial)} after {states[trial].last_train_time}"
        key = zlib.crc32(f"{self.seed}/{self.decision}".encode())
        random.seed(key)
        np.random.seed(key)
        super()._checkpoint_or_exploit(trial, *args)

    def _explored(self, config: Values) -> Values:
        within = {k: _within(domain, config[k]) for k, domain in self.space.domains.items()}
        return config | within | {TAKEOVER: self.decision}


def _within(domain: Any, value: Any) -> Any:
    """The value of `domain` that is nearest to `value`."""
    if not isinstance(domain, FloatDistribution | IntDistribution):
        return value
    near: float = value
    if domain.step:
        near = domain.low + round((value - domain.low) / domain.step) * domain.step
    return type(domain.low)(min(max(near, domain.low), domain.high))
