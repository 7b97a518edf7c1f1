"""One pool of simulators for all trials of a search, as an actor that they ask in turns."""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.util import metrics

from nnit_dist.envs.sim import VALIDATION_SEED
from nnit_dist.evaluate.pool import Failure, Job, SimulatorPool
from nnit_dist.evaluate.simulator import SimBackend, Simulators
from nnit_dist.policy import Policy

TURN_S = 4  # of measuring for one trial, about, before it is another's turn
FIRST_TURN = 160  # episodes, when it is not known how long one takes


@dataclass
class _Exam:
    """What a trial asked for: networks still to be measured, and the successes of the others."""

    left: deque[Policy]
    episodes: int
    success: dict[str, float] = field(default_factory=dict)
    finished: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class Examiner:
    """Measures networks of many trials, each in its turn; an actor with `num_cpus=0`.

    Its simulators have their CPUs before the first trial begins, so that trials that hold all the
    others wait for nothing that waits for them.
    """

    def __init__(
        self, task: str, control_mode: str, actors: int, sim_backend: SimBackend = "auto"
    ) -> None:
        simulators = Simulators(task, control_mode, sim_backend=sim_backend)
        self._pool = SimulatorPool(simulators, actors)
        self._exams: deque[_Exam] = deque()
        self._lock = threading.Condition()
        self._episodes, self._busy, self._failures = 0, 0.0, 0
        self._counted = metrics.Counter("nnit_pool_episodes", "Episodes that were measured.")
        self._queued = metrics.Gauge("nnit_pool_waiting", "Networks that wait for simulators.")
        self._alive = metrics.Gauge("nnit_pool_simulators", "Simulators that are ready or at work.")
        self._lost = metrics.Gauge("nnit_pool_replaced", "Simulators that died or hung.")
        self._began = time.monotonic()
        threading.Thread(target=self._work, daemon=True).start()

    def success(self, policies: list[Policy], episodes: int) -> list[float]:
        """success_once of each over as many episodes, from the start states of validation.

        A network that makes its simulator fail every time counts as one that never succeeds.
        """
        exam = _Exam(deque(policies), episodes)
        with self._lock:
            self._exams.append(exam)
            self._lock.notify()
        exam.finished.wait()
        if exam.error:
            raise exam.error
        return [exam.success[policy.id] for policy in policies]

    def figures(self) -> dict[str, Any]:
        """What the pool has done so far."""
        return {
            "episodes": self._episodes,
            "episodes_per_second": round(self._episodes / max(self._busy, 1e-9), 1),
            "busy": round(self._busy / (time.monotonic() - self._began), 3),
            "waiting": sum(len(exam.left) for exam in self._exams),
            "simulators": self._pool.alive,
            "replaced": self._pool.replaced,
            "failed_networks": self._failures,
        }

    def _work(self) -> None:
        try:
            with self._pool:
                while True:
                    with self._lock:
                        self._lock.wait_for(lambda: self._exams)
                        exam = self._exams.popleft()
                    self._take_turn(exam)
        except Exception as error:  # no simulator starts: whoever waits must hear of it
            for exam in self._exams:
                exam.error = error
                exam.finished.set()

    def _take_turn(self, exam: _Exam) -> None:
        """Measure a slice of what is asked for; the rest goes to the end of the queue."""
        began = time.monotonic()
        seeds = tuple(range(VALIDATION_SEED, VALIDATION_SEED + exam.episodes))
        pace = self._episodes / self._busy if self._busy else FIRST_TURN / TURN_S
        count = max(1, round(pace * TURN_S / exam.episodes))
        turn = [exam.left.popleft() for _ in range(min(count, len(exam.left)))]
        once: dict[str, list[np.ndarray]] = {policy.id: [] for policy in turn}
        failed: set[str] = set()
        try:
            for outcome in self._pool.run([Job(policy, seeds) for policy in turn]):
                if isinstance(outcome, Failure):
                    failed.add(outcome.job.policy.id)
                else:
                    job, rollouts = outcome
                    once[job.policy.id].append(rollouts.success_once)
        except Exception as error:
            exam.error = error
            exam.finished.set()
            return
        self._failures += len(failed)
        exam.success |= {
            name: 0.0 if name in failed else float(np.concatenate(parts).mean())
            for name, parts in once.items()
        }
        self._episodes += len(turn) * exam.episodes
        self._busy += time.monotonic() - began
        self._counted.inc(len(turn) * exam.episodes)
        self._queued.set(self.figures()["waiting"] + len(exam.left))
        self._alive.set(self._pool.alive)
        self._lost.set(self._pool.replaced)
        if exam.left:
            with self._lock:
                self._exams.append(exam)
        else:
            exam.finished.set()


def start_examiner(task: str, control_mode: str, actors: int, sim_backend: SimBackend) -> Any:
    """The actor; calls of `success` wait in it side by side."""
    actor: Any = ray.remote(Examiner).options(num_cpus=0, max_concurrency=1000)
    return actor.remote(task, control_mode, actors, sim_backend)
