"""Tune callback of a search: shows progress, marks trials, and frees resources of dead ones."""

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
    """Feeds the progress view, and marks trials that failed or were stopped early."""

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
        self.places: dict[str, str] = {}  # directory of the last result, by Tune's trial id
        self.done = sum(trial["state"] != "open" for trial in trials)
        self.best = max((last_success(trial) for trial in trials if trial["rungs"]), default=0.0)
        self.looked, self.answer = 0.0, None
        self._done = metrics.Gauge("nnit_search_done", "Trials that are done.")
        self._best = metrics.Gauge("nnit_search_success", "Success of the best trial.")
        view.add("search", total, self.done)

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks; a live view stays in this process

    def on_step_end(self, iteration, trials, **info) -> None:
        """Every few seconds, write the pool's figures and free resources of dead trials."""
        if self.answer and ray.wait([self.answer], timeout=0)[0]:
            with plainly():  # a failed pool ends the search before its trials fail
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
        """Count a trial as done; mark it as stopped if it lacks rungs.

        Tune does not call this for trials that the time budget ends: those stay open.
        """
        directory = self.out / trial.last_result["directory"]
        if not rung_file(directory, self.rungs - 1).exists():
            write_json(directory / STOPPED, {"after": trial.last_result["rung"]})
        self.done += 1
        self._show("")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """Write the error of a failed trial into its directory."""
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
    """Remove placement groups of trainings whose trial's process has died.

    Ray keeps a placement group until its whole job ends, and Ray Train removes only groups whose
    workers have started. A retried trial would otherwise wait for the CPUs of its dead process.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for packed in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(packed)
        # Tune's own groups have no creator actor, which Ray also reports as dead.
        actor = group.creator_actor_id and not ray.ActorID(group.creator_actor_id).is_nil()
        lost = actor and group.creator_actor_dead and group.creator_job_id.hex() == job
        if lost and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
