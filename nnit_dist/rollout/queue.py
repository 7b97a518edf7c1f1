"""Episodes that have not ended yet: which start next, which are tried again, which are given up.

Episodes that fail together are tried together once more, and then one by one, so that one that
kills every simulator is found and only its network is given up.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Job:
    """Episodes of one policy from the given start seeds.

    With `batch`, at most so many of them run at a time, and `SimulatorPool.drop` between two
    batches spares the rest.
    """

    policy: Any
    seeds: tuple[int, ...]
    noise: float = 0.0
    record: bool = False
    batch: int | None = None


@dataclass(frozen=True)
class Failure:
    """A job that was given up, and why."""

    job: Job
    reason: str


@dataclass(eq=False)
class Work:
    """A job on its way: in the queue as long as something of it may start.

    `retries` are groups of episodes that failed, and how often. While one of them runs, or a
    batch, that chunk is the job's `holder`, and nothing else of the job starts. `weights` are the
    policy in the object store.
    """

    job: Job
    pending: deque[int]
    retries: deque[tuple[tuple[int, ...], int]] = field(default_factory=deque)
    weights: Any = None
    running: int = 0
    holder: "Chunk | None" = None
    queued: bool = True
    given_up: bool = False


@dataclass(eq=False)
class Chunk:
    """Episodes of one or several jobs that run together; `failures` is how often they failed."""

    parts: list[tuple[Work, tuple[int, ...]]]
    failures: int = 0

    @property
    def episodes(self) -> int:
        """How many there are in all parts."""
        return sum(len(seeds) for _, seeds in self.parts)


class EpisodeQueue:
    """A queue of jobs; true while something may start.

    Args:
        jobs: what there is to do; one without seeds is none.
        max_attempts: how often an episode is tried before its job is given up.

    Attributes:
        waiting: episodes that have not started, or are to start again.
    """

    def __init__(self, jobs: Sequence[Job], max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._works = {job: Work(job, deque(job.seeds)) for job in jobs if job.seeds}
        self._queue = deque(self._works.values())
        self.waiting = sum(len(work.pending) for work in self._queue)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def take(self, size: int) -> Chunk:
        """What starts next: a group that failed, by itself, or up to `size` other episodes."""
        chunk = self._take_retry() if self._queue[0].retries else self._take_fresh(size)
        for work, _ in chunk.parts:
            work.running += 1
            if chunk.failures or work.job.batch:
                work.holder = chunk
        self.waiting -= chunk.episodes
        return chunk

    def fail(self, chunk: Chunk, reason: str) -> Iterator[Failure]:
        """Put a chunk's episodes back, or give their job up."""
        failures = chunk.failures + 1
        for work, seeds in chunk.parts:
            if failures >= self.max_attempts and chunk.episodes == 1:
                self._clear(work)
                if not work.given_up:
                    work.given_up = True
                    times = f"{failures} times at start seed {seeds[0]}"
                    yield Failure(work.job, f"{reason} ({times})")
            elif not work.given_up:
                alone = failures >= self.max_attempts - 1
                groups = [(seed,) for seed in seeds] if alone else [seeds]
                work.retries.extendleft((group, failures) for group in reversed(groups))
                self.waiting += len(seeds)
            self.release(work, chunk)

    def release(self, work: Work, chunk: Chunk) -> None:
        """A chunk of a job has ended: queue what is left of the job, or forget it."""
        work.running -= 1
        if work.holder is chunk:
            work.holder = None
        left = bool(work.pending or work.retries)
        if left and not work.queued and work.holder is None:
            work.queued = True
            # What failed goes first: at the end it would keep everyone waiting.
            (self._queue.appendleft if work.retries else self._queue.append)(work)
        elif not left and not work.running:
            self._works.pop(work.job, None)

    def drop(self, job: Job) -> int:
        """Do not start those episodes of a job that do not yet run; returns how many."""
        work = self._works.get(job)
        return self._clear(work) if work else 0

    def _take_retry(self) -> Chunk:
        work = self._queue.popleft()
        work.queued = False
        seeds, failures = work.retries.popleft()
        return Chunk([(work, seeds)], failures)

    def _take_fresh(self, size: int) -> Chunk:
        parts = []
        while size > 0 and self._queue and not self._queue[0].retries:
            work = self._queue[0]
            count = min(size, len(work.pending), work.job.batch or size)
            parts.append((work, tuple(work.pending.popleft() for _ in range(count))))
            size -= count
            if work.job.batch or not work.pending:
                self._queue.popleft()
                work.queued = False
        return Chunk(parts)

    def _clear(self, work: Work) -> int:
        spared = len(work.pending) + sum(len(seeds) for seeds, _ in work.retries)
        work.pending.clear()
        work.retries.clear()
        if work.queued:
            self._queue.remove(work)
            work.queued = False
        self.waiting -= spared
        return spared
