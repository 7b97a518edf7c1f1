"""The queue of episodes by itself, with failures drawn at random."""

import random
from collections import Counter

import pytest

from nnit_dist.rollout.queue import EpisodeQueue, Job


def drain(queue, deadly=frozenset(), flaky=0.0, at_once=3, seed=0):
    """Run all, some chunks at a time; returns the episodes that ended well, and the failures.

    A chunk fails with a deadly (policy, seed) in it, and at its first attempt by chance.
    """
    chance, ended, failures, open_chunks = random.Random(seed), [], [], []
    while queue or open_chunks:
        while queue and len(open_chunks) < at_once:
            open_chunks.append(queue.take(chance.randint(1, 5)))
        chunk = open_chunks.pop(chance.randrange(len(open_chunks)))
        episodes = [(work.job.policy, seed) for work, seeds in chunk.parts for seed in seeds]
        if deadly & set(episodes) or (not chunk.failures and chance.random() < flaky):
            failures += queue.fail(chunk, "it died")
        else:
            ended += episodes
            for work, _ in chunk.parts:
                queue.release(work, chunk)
    return ended, failures


def jobs(count=4, episodes=7, **kwargs):
    return [Job(f"p{i}", tuple(range(episodes)), **kwargs) for i in range(count)]


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_every_episode_ends_once_whatever_fails(seed, batch):
    queue = EpisodeQueue(jobs(batch=batch), max_attempts=3)
    ended, failures = drain(queue, flaky=0.5, seed=seed)
    assert Counter(ended) == Counter((f"p{i}", s) for i in range(4) for s in range(7))
    assert not failures
    assert queue.waiting == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_deadly_episode_costs_its_job_alone(seed):
    queue = EpisodeQueue(jobs(), max_attempts=3)
    ended, failures = drain(queue, deadly={("p2", 4)}, flaky=0.3, seed=seed)
    (failure,) = failures
    assert (failure.job.policy, failure.reason) == ("p2", "it died (3 times at start seed 4)")
    assert max(Counter(ended).values()) == 1
    assert set(ended) >= {(p, s) for p in ("p0", "p1", "p3") for s in range(7)}
    assert queue.waiting == 0


def test_one_batch_of_a_job_runs_at_a_time_and_the_rest_can_be_dropped():
    (job,) = given = jobs(count=1, batch=3)
    queue = EpisodeQueue(given, max_attempts=3)
    chunk = queue.take(10)
    assert (chunk.episodes, bool(queue), queue.waiting) == (3, False, 4)
    assert queue.drop(job) == 4
    ((work, _),) = chunk.parts
    queue.release(work, chunk)
    assert not queue
    assert queue.drop(job) == 0  # it is over


def test_what_failed_goes_first():
    queue = EpisodeQueue(jobs(count=3, episodes=2), max_attempts=2)
    chunk = queue.take(2)
    assert not list(queue.fail(chunk, "it died"))
    again = [queue.take(2) for _ in range(2)]
    assert [[(w.job.policy, seeds) for w, seeds in one.parts] for one in again] == [
        [("p0", (0,))],
        [("p1", (0, 1))],
    ]  # the second of p0 waits for the first


def test_a_job_without_episodes_is_none():
    assert not EpisodeQueue([Job("p", ())], max_attempts=3)
