"""What a search tries next, and what it stops: Optuna's sampler and ASHA, told what is known."""

from typing import Any

from optuna.trial import TrialState
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.searcher import Searcher

from nnit_dist.config import RunConfig
from nnit_dist.tune.results import RUNGS
from nnit_dist.tune.space import Space
from nnit_dist.tune.trial import trial_name

ATTEMPTS = 50  # to suggest values that were not tried yet


class FreshSearch(OptunaSearch):
    """Optuna's sampler, asked again where it suggests what was tried already.

    Equal values have one directory, and two trials at once must not share it.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.tried: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        for _ in range(ATTEMPTS):
            values = super().suggest(trial_id)
            if values is None or trial_name(values) not in self.tried:
                self.tried |= {trial_name(values)} if values else set()
                return values
            study: Any = self._ot_study
            study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        return Searcher.FINISHED


def fresh_search(
    space: Space, config: RunConfig, known: list[dict[str, Any]], seed: int
) -> FreshSearch:
    """Optuna's sampler, told what is known. The defaults come first, and what is unfinished."""
    defaults = space.defaults(config)
    first = [trial["values"] for trial in known if trial["state"] == "open"]
    if trial_name(defaults) not in {trial["name"] for trial in known}:
        first.insert(0, defaults)
    searcher = FreshSearch(
        space.domains,
        metric="success",
        mode="max",
        points_to_evaluate=first or None,
        seed=seed + len(known),
    )
    for trial in known:
        searcher.tried.add(trial["name"])
        if trial["state"] == "done":
            searcher.add_evaluated_point(trial["values"], trial["success"])
    searcher.tried -= {trial_name(values) for values in first}
    return searcher


def asha(known: list[dict[str, Any]]) -> tune.schedulers.AsyncHyperBandScheduler:
    """ASHA, which stops the worse half at every rung but the last; it remembers what is known."""
    scheduler = tune.schedulers.AsyncHyperBandScheduler(
        time_attr="training_iteration", max_t=len(RUNGS), grace_period=1, reduction_factor=2
    )
    for milestone, recorded in scheduler._brackets[0]._rungs:
        recorded |= {
            trial["name"]: trial["rungs"][int(milestone) - 1]["success"]
            for trial in known
            if trial["state"] == "done" and len(trial["rungs"]) >= milestone
        }
    return scheduler
