"""One episode of one policy: the single place where success is measured.

ManiSkill's protocol: the episode runs its full length; `success_once` is success
at any step, `success_at_end` success at the last one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nnit_dist.envs.sim import SimEnv

Act = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Episode:
    """What one episode of one policy gave. `mean_return` is the sum of rewards."""

    policy_id: str
    seed: int
    success_once: bool
    success_at_end: bool
    episode_return: float


def run_episode(
    env: SimEnv,
    act: Act,
    seed: int,
    policy_id: str = "",
    noise: float = 0.0,
    observations: list[np.ndarray] | None = None,
) -> Episode:
    """Roll `act` out from the start state of `seed`.

    `noise` is the standard deviation of Gaussian noise added to every action (drawn from
    `seed`). Visited observations are appended to `observations` when it is given.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    once, success, total, truncated = False, False, 0.0, False
    while not truncated:
        if observations is not None:
            observations.append(obs)
        action = act(obs)
        if noise:
            action = action + rng.normal(0.0, noise, action.shape)
        obs, reward, _, truncated, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        success = info["success"]
        once, total = once or success, total + reward
    return Episode(policy_id, seed, once, success, total)


def run_episodes(env: SimEnv, act: Act, seeds: Iterable[int], policy_id: str = "") -> list[Episode]:
    return [run_episode(env, act, seed, policy_id) for seed in seeds]


def mean_success(episodes: list[Episode]) -> tuple[float, float, float]:
    """Means of success_once, success_at_end and return."""
    columns = [(e.success_once, e.success_at_end, e.episode_return) for e in episodes]
    once, at_end, total = np.mean(np.asarray(columns, dtype=np.float64), axis=0)
    return float(once), float(at_end), float(total)
