"""A pool of simulator actors that keeps every one busy and loses no result.

`ray.util.ActorPool` drops a task when its actor dies. Here a task whose actor
dies or overruns its deadline goes back into the queue with one attempt fewer,
on a fresh actor; a policy that fails every attempt is reported with its reason
and the rest goes on.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from nnit_dist.errors import NnitError
from nnit_dist.evaluate.simulator import Rollouts, Simulator
from nnit_dist.policy import Policy

START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Job:
    """Episodes of one policy from the given start seeds, in one call of an actor."""

    policy: Policy
    seeds: tuple[int, ...]
    noise: float = 0.0
    record: bool = False


@dataclass(frozen=True)
class Failure:
    """A job that was given up, and why."""

    job: Job
    reason: str


@dataclass
class _Running:
    job: Job
    actor: Any
    attempt: int
    started: float


class SimulatorPool:
    """`actors` simulators of one task, used as a context manager.

    Args:
        actors: number of simulator processes, one CPU each; all of Ray's CPUs by default.
        max_attempts: how often a job is tried before it is given up.
        deadline_s: a call that takes longer counts as hung; its actor is replaced.
    """

    def __init__(
        self,
        task: str,
        control_mode: str,
        actors: int | None = None,
        max_attempts: int = 3,
        deadline_s: float = 120.0,
    ) -> None:
        self.size = actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.max_attempts, self.deadline_s = max_attempts, deadline_s
        self._task, self._control_mode = task, control_mode
        self._idle: list[Any] = []
        self.replaced = 0

    def _new_actor(self) -> Any:
        remote: Any = ray.remote(Simulator)
        return remote.options(num_cpus=1, max_restarts=0).remote(self._task, self._control_mode)

    def __enter__(self) -> "SimulatorPool":
        self._idle = [self._new_actor() for _ in range(self.size)]
        try:
            ray.get([actor.ready.remote() for actor in self._idle], timeout=START_TIMEOUT_S)
        except (RayError, GetTimeoutError) as error:
            self.__exit__()
            raise NnitError(f"the simulator does not start: {_reason(error)}") from error
        return self

    def __exit__(self, *exc) -> None:
        for actor in self._idle:
            ray.kill(actor)
        self._idle = []

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Rollouts] | Failure]:
        """Yield every job's result as it arrives, in no fixed order; each job exactly once."""
        queue = deque((job, 1) for job in jobs)
        running: dict[Any, _Running] = {}
        try:
            while queue or running:
                while queue and self._idle:
                    job, attempt = queue.popleft()
                    actor = self._idle.pop()
                    ref = actor.rollout.remote(job.policy, job.seeds, job.noise, job.record)
                    running[ref] = _Running(job, actor, attempt, time.monotonic())
                done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for ref in [*done, *self._overdue(running, set(done))]:
                    call = running.pop(ref)
                    outcome = self._collect(ref, call)
                    if isinstance(outcome, Rollouts):
                        yield call.job, outcome
                    elif call.attempt < self.max_attempts:
                        queue.append((call.job, call.attempt + 1))
                    else:
                        yield Failure(call.job, outcome)
        finally:
            # Reached early when the caller stops iterating; Ray may be gone by then.
            if ray.is_initialized():
                for call in running.values():
                    self._replace(call.actor)

    def _overdue(self, running: dict, done: set) -> list[Any]:
        now = time.monotonic()
        return [
            ref
            for ref, call in running.items()
            if ref not in done and now - call.started > self.deadline_s
        ]

    def _collect(self, ref: Any, call: _Running) -> Rollouts | str:
        """The call's result, or the reason why there is none; its actor is idle afterwards."""
        try:
            result = ray.get(ref, timeout=0)
            self._idle.append(call.actor)
            return result
        except GetTimeoutError:
            reason = f"no result within {self.deadline_s:.0f} s"
        except RayActorError:
            reason = "the simulator process died"
        except RayError as error:
            reason = _reason(error)
        self._replace(call.actor)
        return reason

    def _replace(self, actor: Any) -> None:
        ray.kill(actor)
        self.replaced += 1
        self._idle.append(self._new_actor())


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[-1]
