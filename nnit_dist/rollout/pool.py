"""A pool of simulator actors that keeps every one busy and loses no result.

`ray.util.ActorPool` drops a task when its actor dies. Here episodes whose actor dies or
overruns its deadline are run again on a new actor (see `queue.EpisodeQueue`).

Each call of an actor runs a few seconds of episodes, so that the driver makes few calls. Calls
become shorter towards the end, so that all actors finish together (guided self-scheduling,
Polychronopoulos and Kuck 1987). Weights of a network are put into the object store once.
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

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout.episodes import Part, Rollouts
from nnit_dist.rollout.queue import Chunk, EpisodeQueue, Failure, Job
from nnit_dist.runtime.progress import console, styled
from nnit_dist.runtime.ray_session import may_grow

START_TIMEOUT_S = 180.0
NODES_TIMEOUT_S = 1800.0  # while the cluster has no node for simulators
NODE_S = 120.0  # waiting work per simulator that justifies asking for nodes
CALL_S = 2.0
CALLS_PER_S = 100  # at most, for the driver: with more actors, calls become longer
FIRST_CALL = 2  # episodes, before their duration is known
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
    """A call of one actor that runs a chunk of episodes."""

    actor: _Actor
    chunk: Chunk
    started: float
    deadline: float


class SimulatorPool:
    """Simulators on Ray, used as a context manager.

    Args:
        simulators: what to start (`actors.Simulators`).
        actors: number of simulators. By default as many as the cluster has room for; then
            simulators also start on nodes that join, and a cluster that grows is asked for
            more nodes. Simulators that have no room yet join once there is room.
        max_attempts: how often an episode is tried before its job is given up.
        deadline_s: seconds beyond ten times a call's expected duration, after which the call
            counts as hung and its actor is replaced.
        grows: whether nodes may join the cluster; by default the result of `may_grow()`.

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
        self._follows = actors is None  # nodes that join
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
        """Number of simulators that have started, busy or idle."""
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
        """Wait until `count` simulators have started; `run` needs one, and others join it.

        Raises:
            NnitError: the simulator does not work, or Ray has no room for `count` of them.
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

        A job that is given up yields one `Failure`, besides the results of its other episodes.

        Raises:
            NnitError: the simulator does not work, or none is left.
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
        """Cancel the episodes of a job that have not started; return how many."""
        return self._queue.drop(job)

    def seconds_left(self, episodes: int) -> float:
        """Estimated seconds until `episodes` have ended, including those that run now."""
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

    def _watch(self, reference: Any, source: "_Actor | _Call") -> None:
        reference.future().add_done_callback(lambda future: self._arrivals.put((source, future)))

    def _await_arrival(self) -> Iterator[tuple[Job, Rollouts] | Failure]:
        """Handle one result if it arrives within a tick; look for new nodes and hung calls."""
        with contextlib.suppress(queue.Empty):
            source, future = self._arrivals.get(timeout=TICK_S)
            error = future.exception()
            if isinstance(source, _Actor):
                self._settle_start(source, future, error)
            elif source not in self._calls:
                pass  # its call was given up, or the pool was closed
            elif error is None:
                yield from self._succeed(source, future.result())
            else:
                yield from self._fail(source, error)
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
        """Update the average seconds per episode over the last few calls.

        `_work` is the simulator's time, which sets the length of calls. `_pace` is the time from
        call to result, which gives the time left. With `_pace`, a late driver would shorten calls
        and so be later still. An actor's first call is slower; it counts only until a second ends.
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
        """Put a failed call's episodes back; replace the actor unless only the policy failed."""
        self._calls.remove(call)
        if isinstance(cause := getattr(error, "cause", None), NnitError):
            raise NnitError(str(cause))  # the simulator fails with any policy
        if isinstance(error, RayTaskError):
            self._idle.append(call.actor)  # the policy raised; the simulator still works
        else:
            self._replace(call.actor)
        yield from self._queue.fail(call.chunk, _reason(error))

    # Looking after actors

    def _start(self, starts: int = 1) -> None:
        actor = _Actor(self.simulators.start(), starts)
        self._actors.add(actor)
        self._watch(actor.handle.ready.remote(), actor)

    def _grow(self) -> None:
        """Start simulators on nodes that joined; ask for nodes if enough work is waiting."""
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
        # An error that the simulator itself raises would come again.
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
            styled(
                ("warning:", "yellow"),
                f" a simulator does not start, {len(self._actors)} of {self.size} go on: "
                f"{_reason(error)}",
            )
        )

    def _replace(self, actor: _Actor) -> None:
        self._actors.discard(actor)
        self.simulators.stop(actor.handle)
        self.replaced += 1
        self._start()


def call_size(waiting: int, alive: int, episode_s: float, width: int = 1) -> int:
    """Number of episodes in a simulator's next call: a few seconds' worth, fewer near the end.

    `episode_s` is seconds per episode, 0 if unknown; a simulator runs `width` episodes at once.
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
