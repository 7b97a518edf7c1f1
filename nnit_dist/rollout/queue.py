"""Queue of unfinished episodes: which start next, are retried, or are given up.

Episodes that fail together are retried together once, and then one by one. This finds an episode
that kills every simulator, and only its network is given up.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Job:
    """Episodes of one policy from the given start seeds.

    With `batch`, at most that many of them run at a time, so that `SimulatorPool.drop` can cancel
    the rest after each batch.
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
    """State of a job, which is `queued` while any of its episodes may start.

    Attributes:
        pending: start seeds that were not tried yet.
        retries: groups of start seeds that failed together, and how often.
        weights: reference to the policy in the object store.
        holder: the retry or batch that runs; until it ends, nothing else of the job starts.
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
        """Number of episodes in all parts."""
        return sum(len(seeds) for _, seeds in self.parts)


class EpisodeQueue:
    """A queue of jobs; true while an episode may start.

    Args:
        jobs: the jobs to run; jobs without seeds are ignored.
        max_attempts: how often an episode is tried before its job is given up.

    Attributes:
        waiting: number of episodes that have not started or wait for a retry.
    """

    def __init__(self, jobs: Sequence[Job], max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._works = {job: Work(job, deque(job.seeds)) for job in jobs if job.seeds}
        self._queue = deque(self._works.values())
        self.waiting = sum(len(work.pending) for work in self._queue)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def take(self, size: int) -> Chunk:
        """Take the next episodes to run: one group that failed, or up to `size` others."""
        chunk = self._take_retry() if self._queue[0].retries else self._take_fresh(size)
        for work, _ in chunk.parts:
            work.running += 1
            if chunk.failures or work.job.batch:
                work.holder = chunk
        self.waiting -= chunk.episodes
        return chunk

    def fail(self, chunk: Chunk, reason: str) -> Iterator[Failure]:
        """Put the episodes of a failed chunk back, or give up their job."""
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
        """Record that a chunk of a job has ended: queue the rest of the job, or forget the job."""
        work.running -= 1
        if work.holder is chunk:
            work.holder = None
        left = bool(work.pending or work.retries)
        if left and not work.queued and work.holder is None:
            work.queued = True
            # Retries go first: at the end, all simulators would wait for them.
            (self._queue.appendleft if work.retries else self._queue.append)(work)
        elif not left and not work.running:
            self._works.pop(work.job, None)

    def drop(self, job: Job) -> int:
        """Cancel the episodes of a job that have not started; return how many."""
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
