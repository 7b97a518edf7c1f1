"""What goes on beside the trials of a search: its progress view, its marks, its cleaning up."""

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util import metrics

from nnit_dist.core.files import write_json
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.search.records import TrialRecord
from nnit_dist.search.results import ERROR, POOL, STOPPED, last_success, rung_file
from nnit_dist.search.server import plainly
from nnit_dist.search.trial import place_of

RETRIES = 2  # of a trial that fails
LOOK_EVERY_S = 5.0


class Watch(tune.Callback):
    """Feeds the progress view, and marks trials that failed or were stopped for the worse."""

    def __init__(
        self,
        view: StageProgress,
        out: Path,
        *,
        total: int,
        trials: list[TrialRecord],
        rungs: int,
        server: Any,
    ) -> None:
        self.view, self.out, self.rungs, self.server = view, out, rungs, server
        self.places: dict[str, str] = {}  # of the last results, by trial
        self.done = sum(trial["state"] != "open" for trial in trials)
        self.best = max((last_success(trial) for trial in trials if trial["rungs"]), default=0.0)
        self.looked, self.answer = 0.0, None
        self._done = metrics.Gauge("nnit_search_done", "Trials that are done.")
        self._best = metrics.Gauge("nnit_search_success", "Success of the best trial.")
        view.add("search", total, self.done)

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks; a live view stays in this process

    def on_step_end(self, iteration, trials, **info) -> None:
        """Now and then: keep what the pool tells of itself, and give back what nobody uses."""
        if self.answer and ray.wait([self.answer], timeout=0)[0]:
            with plainly():  # trials would fail for what is not their fault
                write_json(self.out / POOL, ray.get(self.answer))
            self.answer = None
        if time.monotonic() - self.looked > LOOK_EVERY_S:
            self.looked = time.monotonic()
            self.answer = self.answer or self.server.figures.remote()
            release_orphans()

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        """Show a rung, and mark the trial whose state was replaced as stopped."""
        place, previous = result["directory"], self.places.get(trial.trial_id)
        if previous and previous != place:  # it inherited what another had trained
            write_json(self.out / previous / STOPPED, {"after": result["rung"] - 1})
        self.places[trial.trial_id] = place
        self.best = max(self.best, result["success"])
        self._show(f"rung {result['rung'] + 1} of {self.rungs}: {result['success']:.3f}")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """(At the end of the budget Tune does not call it: those trials stay open.)"""
        directory = self.out / trial.last_result["directory"]
        if not rung_file(directory, self.rungs - 1).exists():
            write_json(directory / STOPPED, {"after": trial.last_result["rung"]})
        self.done += 1
        self._show("")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """Keep why a trial failed beside its files."""
        path = self.out / place_of(trial.config, trial.checkpoint).name / ERROR
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Path(trial.error_file).read_text() if trial.error_file else "unknown")
        self.done += 1
        self._show(f"{path.parent.name} failed {RETRIES + 1} times")

    def _show(self, note: str) -> None:
        self._done.set(self.done)
        self._best.set(self.best)
        self.view.update("search", self.done, f"best {self.best:.3f}  {note}")


def release_orphans() -> None:
    """Give back what the trainings held, or wait for, whose trial's process has died.

    Ray keeps a placement group until its whole job ends, and Ray Train gives back those alone
    whose workers had started: a trial that is tried again would wait for its own CPUs.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for packed in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(packed)
        # Tune's own come from no actor, which also counts as a dead one.
        actor = group.creator_actor_id and not ray.ActorID(group.creator_actor_id).is_nil()
        lost = actor and group.creator_actor_dead and group.creator_job_id.hex() == job
        if lost and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
