"""A pool of simulator actors that keeps every one busy and loses no result.

`ray.util.ActorPool` drops a task when its actor dies. Here episodes whose actor dies or
overruns its deadline are run again on a fresh actor, as `queue.EpisodeQueue` says.

Episodes travel in calls of a few seconds, so that the driver has little to do, and in ever
shorter ones towards the end, so that all actors finish together (guided self-scheduling,
Polychronopoulos and Kuck 1987). A network's weights travel once, to the object store.
"""

import contextlib
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from rich.markup import escape

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout.episodes import Part, Rollouts
from nnit_dist.rollout.queue import Chunk, EpisodeQueue, Failure, Job
from nnit_dist.runtime.progress import console
from nnit_dist.runtime.ray_session import may_grow

START_TIMEOUT_S = 180.0
NODES_TIMEOUT_S = 1800.0  # of a cluster that has no node for simulators yet
NODE_S = 120.0  # of work for each simulator that a node is asked for
CALL_S = 2.0
CALLS_PER_S = 100  # what the driver is to have to do with; calls grow longer with more actors
FIRST_CALL = 2
MAX_STARTS = 3
TICK_S = 1.0


@dataclass(eq=False)
class _Actor:
    handle: Any
    starts: int
    width: int = 1
    fresh: bool = True


@dataclass(eq=False)
class _Call:
    """Episodes on their way through one actor."""

    actor: _Actor
    chunk: Chunk
    started: float
    deadline: float


class SimulatorPool:
    """Simulators on Ray, used as a context manager.

    Args:
        simulators: what to start (`actors.Simulators`).
        actors: how many; by default as many as the cluster has room for, and more where nodes
            join it, for which a cluster that grows is asked. Those that find no room join when
            there is some.
        max_attempts: how often an episode is tried before its job is given up.
        deadline_s: a call that takes this much longer than expected counts as hung; its actor
            is replaced.
        grows: whether nodes may come to the cluster; by default as `may_grow` says in this process.

    Attributes:
        alive: simulators that are ready or at work.
        replaced: simulators that died or were killed because they hung.
        calls: how many calls were sent out.
    """

    def __init__(
        self,
        simulators: Any,
        actors: int | None = None,
        *,
        max_attempts: int = 3,
        deadline_s: float = 120.0,
        grows: bool | None = None,
    ) -> None:
        self.simulators, self.size = simulators, actors or max(1, simulators.room())
        self._follows = actors is None  # nodes that come
        self._asks = may_grow() if grows is None else grows
        self.max_attempts, self.deadline_s = max_attempts, deadline_s
        self.replaced = self.calls = 0
        self._arrivals: queue.SimpleQueue[tuple[_Actor | _Call, Future]] = queue.SimpleQueue()
        self._actors: set[_Actor] = set()
        self._idle: list[_Actor] = []
        self._calls: set[_Call] = set()
        self._queue = EpisodeQueue((), max_attempts)
        self._pace = self._work = 0.0
        self._paced = 0
        self._checked = time.monotonic()

    @property
    def alive(self) -> int:
        """Simulators that run, at work or idle."""
        return len(self._idle) + len(self._calls)

    def __enter__(self) -> "SimulatorPool":
        for _ in range(self.size):
            self._start()
        try:
            self.await_simulators(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def await_simulators(self, count: int) -> None:
        """Wait until so many have started; a run begins with the first, and others join.

        Raises:
            NnitError: the simulator does not work, or Ray has no room for so many.
        """
        began = nodes_since = time.monotonic()
        if self._asks and not self.simulators.room():
            console.print("no node to simulate on yet: the cluster is asked for one")
        while self.alive < count:
            now = time.monotonic()
            if self._asks and not self.simulators.room() and now < began + NODES_TIMEOUT_S:
                nodes_since = now
            if now > nodes_since + START_TIMEOUT_S:
                raise NnitError(
                    f"{self.alive} simulators of {count} started within {START_TIMEOUT_S:.0f} s; "
                    f"Ray has {ray.available_resources().get('CPU', 0):.0f} CPUs free. "
                    "See `ray status`."
                )
            list(self._await_arrival())

    def __exit__(self, *exc) -> None:
        if ray.is_initialized():
            for actor in self._actors:
                self.simulators.stop(actor.handle)
        self._actors.clear()
        self._idle.clear()
        self._calls.clear()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Rollouts] | Failure]:
        """Yield results as they arrive, in no fixed order; every episode exactly once.

        A job that is given up yields one `Failure`, beside those episodes of it that end well.
        """
        self._queue = EpisodeQueue(jobs, self.max_attempts)
        try:
            while self._queue or self._calls:
                self._dispatch()
                yield from self._await_arrival()
        finally:
            # Reached early when the caller stops iterating; Ray may be gone by then.
            if ray.is_initialized():
                for call in list(self._calls):
                    self._replace(call.actor)
            self._calls.clear()

    def drop(self, job: Job) -> int:
        """Do not start those episodes of a job that do not yet run; returns how many."""
        return self._queue.drop(job)

    def seconds_left(self, episodes: int) -> float:
        """How long so many episodes still take, those that run now among them."""
        now = time.monotonic()
        spent = sum(min(now - c.started, self._pace * c.chunk.episodes) for c in self._calls)
        return max(0.0, self._pace * episodes - spent) / max(1, self.alive)

    # Sending work out

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            call = self._next_call(self._idle.pop())
            self._calls.add(call)
            self.calls += 1
            parts = [
                Part(work.weights, seeds, work.job.noise, work.job.record)
                for work, seeds in call.chunk.parts
            ]
            self._watch(call.actor.handle.rollout.remote(parts), call)

    def _next_call(self, actor: _Actor) -> _Call:
        size = call_size(self._queue.waiting, self.alive, self._work, actor.width)
        chunk = self._queue.take(size)
        for work, _ in chunk.parts:
            if work.weights is None:
                work.weights = ray.put(work.job.policy)
        now = time.monotonic()
        return _Call(actor, chunk, now, now + self.deadline_s + 10 * self._pace * chunk.episodes)

    # Taking results in

    def _watch(self, reference: Any, evaluable: "_Actor | _Call") -> None:
        reference.future().add_done_callback(lambda future: self._arrivals.put((evaluable, future)))

    def _await_arrival(self) -> Iterator[tuple[Job, Rollouts] | Failure]:
        """Take one arrival in, or wait a moment for it, and look after calls that hang."""
        with contextlib.suppress(queue.Empty):
            evaluable, future = self._arrivals.get(timeout=TICK_S)
            error = future.exception()
            if isinstance(evaluable, _Actor):
                self._settle_start(evaluable, future, error)
            elif evaluable not in self._calls:
                pass  # it came too late, or the pool was closed
            elif error is None:
                yield from self._succeed(evaluable, future.result())
            else:
                yield from self._fail(evaluable, error)
        if time.monotonic() - self._checked > TICK_S:
            self._checked = time.monotonic()
            self._grow()
            for call in [call for call in self._calls if call.deadline < self._checked]:
                waited = self._checked - call.started
                yield from self._fail(call, TimeoutError(f"no result within {waited:.0f} s"))

    def _succeed(self, call: _Call, results: list[Rollouts]) -> Iterator[tuple[Job, Rollouts]]:
        self._calls.remove(call)
        self._idle.append(call.actor)
        self._learn_pace(call, sum(rollouts.seconds for rollouts in results))
        for (work, _), rollouts in zip(call.chunk.parts, results, strict=True):
            yield work.job, rollouts
            self._queue.release(work, call.chunk)

    def _learn_pace(self, call: _Call, at_work: float) -> None:
        """Average, over the last few calls, what an episode takes: the simulator alone, and
        from call to result. The first would not do for the time left, nor the second for the
        length of calls: a driver that is late would shorten them and be later still.

        An actor's first call is slower, and counts only until there is a second one.
        """
        pace = (time.monotonic() - call.started) / call.chunk.episodes
        work = at_work / call.chunk.episodes
        if call.actor.fresh:
            call.actor.fresh = False
            self._pace, self._work = self._pace or pace, self._work or work
            return
        self._paced = min(self._paced + call.chunk.episodes, 10 * call.chunk.episodes)
        share = call.chunk.episodes / self._paced
        self._pace += (pace - self._pace) * share
        self._work += (work - self._work) * share

    def _fail(self, call: _Call, error: BaseException) -> Iterator[Failure]:
        """Put a call's episodes back; the actor goes on, or another comes in its place."""
        self._calls.remove(call)
        if isinstance(cause := getattr(error, "cause", None), NnitError):
            raise NnitError(str(cause))  # the simulator refuses, whatever the policy
        if isinstance(error, RayTaskError):
            self._idle.append(call.actor)  # the policy raised; the simulator is well
        else:
            self._replace(call.actor)
        yield from self._queue.fail(call.chunk, _reason(error))

    # Looking after actors

    def _start(self, starts: int = 1) -> None:
        actor = _Actor(self.simulators.start(), starts)
        self._actors.add(actor)
        self._watch(actor.handle.ready.remote(), actor)

    def _grow(self) -> None:
        """Use nodes that have joined, and ask for more where that is worth it."""
        if not self._follows:
            return
        wanted = self.simulators.room()
        if self._asks:
            wanted = max(wanted, int(self._queue.waiting * self._work / NODE_S))
        while self.size < wanted:
            self.size += 1
            self._start()

    def _settle_start(self, actor: _Actor, future: Future, error: BaseException | None) -> None:
        if actor not in self._actors:
            return
        if error is None:
            actor.width = future.result().width
            self._idle.append(actor)
            return
        self._actors.remove(actor)
        self.simulators.stop(actor.handle)
        # What the simulator itself says will be the same the next time.
        if not isinstance(error, RayTaskError) and actor.starts < MAX_STARTS:
            self._start(actor.starts + 1)
            return
        if not self._actors:
            raise NnitError(
                f"no simulator is left, and none starts: {_reason(error)}"
                if self._pace
                else f"the simulator does not start: {_reason(error)}"
            )
        console.print(
            f"[yellow]warning:[/] a simulator does not start, {len(self._actors)} of {self.size} "
            f"go on: {escape(_reason(error))}"
        )

    def _replace(self, actor: _Actor) -> None:
        self._actors.discard(actor)
        self.simulators.stop(actor.handle)
        self.replaced += 1
        self._start()


def call_size(waiting: int, alive: int, episode_s: float, width: int = 1) -> int:
    """Episodes of a simulator's next call: a few seconds' worth, fewer when the end is near.

    `episode_s` is what an episode takes, or 0 if that is not known yet; `width` simulated at once.
    """
    fair = waiting // (2 * (alive + 1))
    call_s = max(CALL_S, alive / CALLS_PER_S)
    wanted = int(call_s / episode_s) if episode_s else FIRST_CALL
    return width * max(1, min(fair, wanted) // width)


def _reason(error: BaseException) -> str:
    if isinstance(error, RayActorError):
        return "the simulator process died"
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
