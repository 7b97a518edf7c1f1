"""One pool of simulators for all trials of a search, as an actor that serves them in turns."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import metrics

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.envs.sim import VALIDATION_SEED
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job
from nnit_dist.rollout.recording import visited
from nnit_dist.search.records import PoolFigures

TURN_S = 4  # of simulation, about, for one trial before the next has its turn
FIRST_TURN = 160  # episodes, before their duration is known
MAX_WAITING = 200  # calls that may wait in the actor at once


@dataclass
class EvaluationRequest:
    """Request of a trial: the jobs still to be run, and the outcomes so far."""

    left: deque[Job]
    outcomes: list[tuple[Job, Rollouts] | Failure] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class EvaluationServer:
    """Ray actor that rolls out the networks of many trials in turns; it takes no CPU itself.

    `ready` returns once all simulators hold their CPUs, or the first one if the cluster `grows`.
    A search calls it before its first trial. Otherwise trials could hold all CPUs and wait for
    simulators that wait for a CPU.
    """

    def __init__(self, simulators: Simulators, actors: int, grows: bool) -> None:
        self._pool = SimulatorPool(simulators, actors, grows=grows)
        self._awaited = 1 if grows else actors
        self._requests: deque[EvaluationRequest] = deque()
        self._changed = threading.Condition()
        self._started, self._error = False, cast(Exception | None, None)
        self._episodes, self._busy, self._failures = 0, 0.0, 0
        self._began = time.monotonic()
        self._counted = metrics.Counter("nnit_pool_episodes", "Episodes that were measured.")
        self._queued = metrics.Gauge("nnit_pool_waiting", "Networks that wait for simulators.")
        self._alive = metrics.Gauge("nnit_pool_simulators", "Simulators that are ready or at work.")
        self._lost = metrics.Gauge("nnit_pool_replaced", "Simulators that died or hung.")
        threading.Thread(target=self._work, daemon=True).start()

    def ready(self) -> None:
        """Wait until simulators have started; raises the error if they cannot start."""
        with self._changed:
            self._changed.wait_for(lambda: self._started or self._error)
        if self._error:
            raise self._error

    def success(self, policies: list[Policy], episodes: int) -> list[float]:
        """Mean success_once of each policy over `episodes` validation start seeds.

        A network that makes its simulator fail every time has success 0.
        """
        seeds = tuple(range(VALIDATION_SEED, VALIDATION_SEED + episodes))
        jobs = [Job(policy, seeds) for policy in policies]
        once: dict[Job, list[np.ndarray]] = {job: [] for job in jobs}
        failed: set[Job] = set()
        for outcome in self._outcomes(jobs):
            if isinstance(outcome, Failure):
                failed.add(outcome.job)
            else:
                job, rollouts = outcome
                once[job].append(rollouts.success_once)
        return [0.0 if j in failed else float(np.concatenate(once[j]).mean()) for j in jobs]

    def record(self, jobs: list[Job]) -> list[np.ndarray]:
        """Run jobs; return their observations as `visited` does, NnitError if one is given up."""
        return visited(jobs, self._outcomes(jobs))

    def _outcomes(self, jobs: list[Job]) -> list[tuple[Job, Rollouts] | Failure]:
        """Queue jobs, wait until all have run, and return their outcomes."""
        request = EvaluationRequest(deque(jobs))
        with self._changed:
            if self._error:
                raise self._error
            self._requests.append(request)
            self._changed.notify_all()
        request.finished.wait()
        if request.error:
            raise request.error
        return request.outcomes

    def figures(self) -> PoolFigures:
        """Figures of the pool so far; raises the error if the pool has failed."""
        with self._changed:
            if self._error:
                raise self._error
            waiting = sum(len(request.left) for request in self._requests)
        return {
            "episodes": self._episodes,
            "episodes_per_second": round(self._episodes / max(self._busy, 1e-9), 1),
            "busy": round(self._busy / (time.monotonic() - self._began), 3),
            "waiting": waiting,
            "simulators": self._pool.alive,
            "replaced": self._pool.replaced,
            "failed_networks": self._failures,
        }

    def _work(self) -> None:
        """Serve requests in turns until the actor ends; an error fails all other requests too."""
        request = None
        try:
            with self._pool:
                self._pool.await_simulators(self._awaited)
                with self._changed:
                    self._started = True
                    self._changed.notify_all()
                while True:
                    with self._changed:
                        self._changed.wait_for(lambda: self._requests)
                        request = self._requests.popleft()
                    self._take_turn(request)
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
                for waiting in [*self._requests, *([request] if request else [])]:
                    waiting.error = error
                    waiting.finished.set()

    def _take_turn(self, request: EvaluationRequest) -> None:
        """Run some jobs of a request; the request goes to the end of the queue if any are left."""
        began = time.monotonic()
        pace = self._episodes / self._busy if self._busy else FIRST_TURN / TURN_S
        turn: list[Job] = []
        episodes = 0
        while request.left and (not turn or episodes + len(request.left[0].seeds) <= pace * TURN_S):
            turn.append(request.left.popleft())
            episodes += len(turn[-1].seeds)
        outcomes = list(self._pool.run(turn))
        request.outcomes += outcomes
        self._failures += sum(isinstance(outcome, Failure) for outcome in outcomes)
        self._episodes += episodes
        self._busy += time.monotonic() - began
        self._counted.inc(episodes)
        if request.left:
            with self._changed:
                self._requests.append(request)
        else:
            request.finished.set()
        figures = self.figures()
        self._queued.set(figures["waiting"])
        self._alive.set(figures["simulators"])
        self._lost.set(figures["replaced"])


@contextmanager
def evaluation_server(simulators: Simulators, actors: int, grows: bool) -> Iterator[Any]:
    """Start an `EvaluationServer` with its simulators, and kill it at the end of the block.

    Without the kill it would live as long as the process, since Tune keeps a reference to it.

    Raises:
        NnitError: the simulators do not start.
    """
    actor: Any = ray.remote(EvaluationServer).options(num_cpus=0, max_concurrency=MAX_WAITING)
    server = actor.remote(simulators, actors, grows)
    try:
        with plainly():
            ray.get(server.ready.remote())
        yield server
    finally:
        ray.kill(server)


@contextmanager
def plainly() -> Iterator[None]:
    """Raise errors of the server without Ray's tracebacks."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, NnitError) else error) from None
    except RayActorError:
        raise NnitError("the pool of simulators died; the same command goes on.") from None
