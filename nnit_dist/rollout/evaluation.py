"""Measure policies on a pool of simulators, all from the same start states."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.storage import path_of
from nnit_dist.core.task import MOST_EPISODES, SimBackend, TaskInfo
from nnit_dist.envs.sim import TEST_SEED, check_for_networks, task_info
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.evaluable import Evaluable, check_evaluables, read_evaluables
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job
from nnit_dist.rollout.results import PolicyResult
from nnit_dist.rollout.scores import Scores
from nnit_dist.rollout.statistics import Paired, paired, wilson
from nnit_dist.rollout.store import EpisodeStore
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.runtime.ray_session import ray_session

SHOW_EVERY_S = 0.2


@dataclass
class Evaluation:
    """Episodes of every policy, and the policies that could not be measured, with the reason."""

    policies: list[Evaluable]
    scores: Scores
    failures: dict[str, str]
    info: TaskInfo

    def rows(self) -> list[PolicyResult]:
        """One row per measured policy: success with a 95% Wilson interval, and mean return."""
        return [
            self._row(index, policy)
            for index, policy in enumerate(self.policies)
            if policy.id not in self.failures
        ]

    def success(self, policy_id: str) -> np.ndarray:
        """`success_once` of a policy's counted episodes, bool [N], in the order of start seeds.

        Raises:
            NnitError: no such policy was measured.
        """
        for index, policy in enumerate(self.policies):
            if policy.id == policy_id and policy_id not in self.failures:
                return self.scores.success_once[index, : self.scores.counted(index)] == 1
        raise NnitError(f"no policy {policy_id!r} was measured.")

    def compare(self, first: str, second: str) -> Paired:
        """Compare two policies episode by episode, from the same start states.

        Raises:
            NnitError: one of them was not measured.
        """
        a, b = self.success(first), self.success(second)
        common = min(len(a), len(b))
        return paired(a[:common], b[:common])

    def _row(self, index: int, policy: Evaluable) -> PolicyResult:
        episodes = self.scores.counted(index)
        successes = int(self.scores.success_once[index, :episodes].sum())
        low, high = wilson(successes, episodes)
        mean_return = float(self.scores.returns[index, :episodes].mean())
        return {
            "policy_id": policy.id,
            "fingerprint": policy.fingerprint(),
            "source": policy.source,
            "hidden": list(_hidden(policy)),
            "episodes": episodes,
            "success_once": successes / episodes,
            "success_once_low": low,
            "success_once_high": high,
            "success_at_end": float(self.scores.success_at_end[index, :episodes].mean()),
            "return": None if np.isnan(mean_return) else mean_return,
        }


@dataclass(frozen=True)
class Evaluator:
    """Where and how policies are measured.

    Args:
        actors: number of simulator processes; by default one per CPU (or GPU) of the cluster.
        sim_backend: `physx_cpu`; `physx_cuda`, which runs many networks at once on a GPU, but no
            callables; or `auto`, which is `physx_cuda` if Ray has a GPU.
        first_seed: the first start seed. The default seeds are never used for training or
            selection.
        title: the name of the progress bar.
        address: a running Ray cluster, unless Ray is initialized; by default a local Ray is
            started.
    """

    actors: int | None = None
    sim_backend: SimBackend = "auto"
    first_seed: int = TEST_SEED
    title: str = "evaluate"
    address: str | None = None

    def evaluate(
        self,
        policies: Any,
        episodes: int = 100,
        out: Path | str | None = None,
        *,
        task: str | None = None,
        control_mode: str | None = None,
        returns: bool = False,
        until_halfwidth: float | None = None,
    ) -> Evaluation:
        """Roll every policy out in ManiSkill3 from the same fixed start states.

        Starts a local Ray on all cores unless one is running. Success follows ManiSkill's
        protocol: episodes run their full length; `success_once` is success at any step,
        `success_at_end` at the last. An `Evaluator` chooses the simulators, as in
        `Evaluator(actors=2).evaluate(...)`.

        Args:
            policies: a policy, a path to policy files or to a zoo, a callable that maps an
                observation [obs_dim] to an action [act_dim] in the control mode's units, or a
                list of these. All need the same task and control mode, and different ids. See
                `FunctionPolicy` for callables with state.
            episodes: number of episodes per policy, from the same start seeds for all policies.
            out: a directory to keep every episode in (`out/episodes`, Parquet, one row per
                episode). Stored episodes are not run again, so a killed evaluation can resume.
            task, control_mode: task and control mode of callables, which do not name them; those
                of policies must be the same.
            returns: whether to measure returns too, which takes a third longer (PushCube-v1).
            until_halfwidth: stop measuring a policy once the half-width of the 95% interval of
                its success_once is at most this. This takes fewer episodes but biases the
                figures; `statistics.stopping_bias` computes by how much.

        Returns:
            An `Evaluation`. Its `failures` name each policy that makes its simulator fail every
            time, with the reason; all other policies are measured.

        Raises:
            NnitError: no policies, no episodes, an unknown task, several tasks, a task or control
                mode that is not the policies', duplicate ids, sizes that are not the task's, NaN
                weights, or `out` holds episodes of another task. Then no episode is run.

        Example:
            >>> from pathlib import Path
            >>> from nnit_dist import evaluate
            >>> result = evaluate(Path("my_policies"), episodes=20)
            >>> [(row["policy_id"], row["success_once"]) for row in result.rows()]
            >>> evaluate(lambda obs: -obs[:8], episodes=20, task="PushCube-v1").rows()
        """
        out = None if out is None else path_of(out)
        evaluables = read_evaluables(policies, task, control_mode)
        info = _check(evaluables, episodes, until_halfwidth)
        seeds = range(self.first_seed, self.first_seed + episodes)
        scores = Scores(len(evaluables), seeds, until_halfwidth)
        store = EpisodeStore(out / "episodes", info) if out else None
        for index, rollouts in store.load(evaluables) if store else ():
            if not (returns and np.isnan(rollouts.returns).any()):
                scores.add(index, rollouts)
        failures: dict[str, str] = {}
        if any(scores.missing(index) for index in range(len(evaluables))):
            sim_backend = _backend_for(evaluables, self.sim_backend)
            with ray_session(self.address):
                first = evaluables[0]
                simulators = Simulators(first.task, first.control_mode, returns, sim_backend)
                simulators.check()
                failures = measure(
                    evaluables, scores, store, simulators, actors=self.actors, title=self.title
                )
        if store:
            store.compact()
        return Evaluation(evaluables, scores, failures, info)


evaluate = Evaluator().evaluate


def measure(
    evaluables: Sequence[Evaluable],
    scores: Scores,
    store: EpisodeStore | None,
    simulators: Any,
    *,
    actors: int | None,
    title: str,
    watch: Callable[[int, float], None] | None = None,
) -> dict[str, str]:
    """Run the episodes missing in `scores` on a pool; add them to `scores` and the store.

    `watch` is called with the episodes done and the seconds left, a few times a second. Returns
    the reason for each policy that failed, by its id.
    """
    work = _Measurement(evaluables, scores, store)
    try:
        with StageProgress("episodes") as view:
            view.add(title, total=work.total, completed=work.done)
            with SimulatorPool(simulators, actors) as pool:
                shown = 0.0
                for _ in work.run(pool):
                    if time.monotonic() - shown < SHOW_EVERY_S and work.done < work.total:
                        continue
                    shown = time.monotonic()
                    left = pool.seconds_left(work.total - work.done)
                    view.resize(title, work.total)
                    view.update(title, work.done, work.note(pool), left)
                    if watch:
                        watch(work.done, left)
    finally:
        if store:
            store.flush()
    return work.failures


class _Measurement:
    """Runs the episodes missing in `scores` on a pool, and counts them."""

    def __init__(
        self, evaluables: Sequence[Evaluable], scores: Scores, store: EpisodeStore | None
    ) -> None:
        self.evaluables, self.scores, self.store = evaluables, scores, store
        self.failures: dict[str, str] = {}
        self.total = self.done = self.fresh = self.successes = 0
        self.started = time.monotonic()
        for index in range(len(evaluables)):
            self.total += scores.counted(index)
            self.done += scores.counted(index) - len(scores.missing(index))

    def run(self, pool: SimulatorPool) -> Iterator[None]:
        owners = {
            Job(evaluable, missing, batch=self.scores.batch): index
            for index, evaluable in enumerate(self.evaluables)
            if (missing := self.scores.missing(index))
        }
        jobs = list(owners)
        # Shuffled, so that early figures of time and success are representative.
        random.Random(0).shuffle(jobs)
        self.started = time.monotonic()
        for outcome in pool.run(jobs):
            if isinstance(outcome, Failure):
                self._give_up(outcome, owners[outcome.job])
            else:
                self._take(*outcome, owners[outcome[0]], pool)
            yield

    def _give_up(self, failure: Failure, index: int) -> None:
        self.failures[self.evaluables[index].id] = failure.reason
        self.total -= len(self.scores.missing(index))

    def _take(self, job: Job, rollouts: Rollouts, index: int, pool: SimulatorPool) -> None:
        counted = self.scores.counted(index)
        self.scores.add(index, rollouts)
        if self.store:
            self.store.add(self.evaluables[index], rollouts)
        self.done += len(rollouts.seeds)
        self.fresh += len(rollouts.seeds)
        self.successes += int(rollouts.success_once.sum())
        if self.scores.counted(index) < counted:
            self.total -= pool.drop(job)

    def note(self, pool: SimulatorPool) -> str:
        """Describe the progress in a few words."""
        parts = [
            f"{self.fresh / (time.monotonic() - self.started):.0f}/s",
            f"success {self.successes / max(self.fresh, 1):.3f}",
            f"{pool.alive} simulators",
        ]
        if pool.replaced:
            parts.append(f"{pool.replaced} replaced")
        if self.failures:
            parts.append(f"{len(self.failures)} given up")
        if self.store and self.store.trouble:
            parts.append(self.store.trouble)
        return ", ".join(parts)


def _backend_for(evaluables: Sequence[Evaluable], sim_backend: SimBackend) -> SimBackend:
    """Backend that can run these policies; NnitError if they cannot run on `sim_backend`."""
    if all(isinstance(evaluable, Policy) for evaluable in evaluables):
        return sim_backend
    if sim_backend == "physx_cuda":
        raise NnitError("callables cannot be batched on a GPU; evaluate them with physx_cpu.")
    return "physx_cpu"


def _hidden(evaluable: Evaluable) -> tuple[int, ...]:
    return evaluable.topology.hidden if isinstance(evaluable, Policy) else evaluable.hidden


def _check(
    evaluables: Sequence[Evaluable], episodes: int, until_halfwidth: float | None
) -> TaskInfo:
    if not evaluables:
        raise NnitError("there are no policies to evaluate.")
    if not 1 <= episodes <= MOST_EPISODES:
        raise NnitError(f"a policy is measured in 1 to {MOST_EPISODES:,} episodes, not {episodes}.")
    if until_halfwidth is not None and not 0 < until_halfwidth < 0.5:
        raise NnitError(f"until_halfwidth must lie between 0 and 0.5; got {until_halfwidth}.")
    tasks = {(evaluable.task, evaluable.control_mode) for evaluable in evaluables}
    if len(tasks) > 1:
        raise NnitError(f"policies of several tasks: {sorted(tasks)}. Evaluate one at a time.")
    (task,) = tasks
    if any(isinstance(evaluable, Policy) for evaluable in evaluables):
        info, _ = check_for_networks(*task)
    else:
        info = task_info(*task)
    check_evaluables(evaluables, info)
    return info
