"""The simulator actor: one ManiSkill3 environment in one Ray process."""

from dataclasses import dataclass

import numpy as np

from nnit_dist.evaluate.rollout import Episode
from nnit_dist.policy import Policy


@dataclass(frozen=True)
class Rollouts:
    """What one call of an actor returns: episodes, and observations [N, obs_dim] if asked."""

    episodes: list[Episode]
    observations: np.ndarray | None = None


class Simulator:
    """Rolls policies out. Made a Ray actor by the pool; plain Python otherwise."""

    def __init__(self, task: str, control_mode: str) -> None:
        from nnit_dist.envs.sim import SimEnv

        self.env = SimEnv(task, control_mode)

    def ready(self) -> bool:
        return True

    def rollout(
        self, policy: Policy, seeds: tuple[int, ...], noise: float, record: bool
    ) -> Rollouts:
        from nnit_dist.evaluate.rollout import run_episode

        observations: list[np.ndarray] | None = [] if record else None
        episodes = [
            run_episode(self.env, policy.act, seed, policy.id, noise, observations)
            for seed in seeds
        ]
        return Rollouts(episodes, np.stack(observations) if observations else None)
