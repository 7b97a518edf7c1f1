"""Observations of recorded episodes, in the order of their jobs."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job


def record(
    simulators: Simulators,
    actors: int | None,
    jobs: Sequence[Job],
    follow: Callable[[int, float], None] = lambda episodes, seconds_left: None,
) -> list[np.ndarray]:
    """Run jobs that record in a new pool; return their observations as `visited` does.

    `follow` is called with the number of episodes done and the seconds left.

    Raises:
        NnitError: a job was given up, or no simulator starts.
    """
    left = sum(len(job.seeds) for job in jobs)
    with SimulatorPool(simulators, actors) as pool:
        return visited(
            jobs, pool.run(jobs), lambda done: follow(done, pool.seconds_left(left - done))
        )


def visited(
    jobs: Sequence[Job],
    outcomes: Iterable[tuple[Job, Rollouts] | Failure],
    follow: Callable[[int], None] = lambda episodes: None,
) -> list[np.ndarray]:
    """Collect each job's observations, float32 [N, obs_dim], episodes in the order of its seeds.

    `follow` is called with the number of episodes done.

    Raises:
        NnitError: a job was given up.
    """
    observations_of: dict[tuple[Job, int], np.ndarray] = {}
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise NnitError(f"recording states failed: {outcome.reason}.")
        job, rollouts = outcome
        assert rollouts.observations is not None
        recorded = zip(rollouts.seeds, rollouts.observations, strict=True)
        observations_of |= {(job, seed): observations for seed, observations in recorded}
        follow(len(observations_of))
    return [np.concatenate([observations_of[job, seed] for seed in job.seeds]) for job in jobs]
