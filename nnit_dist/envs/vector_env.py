"""A batch of environments as RLlib's env runner expects it.

RLlib takes the step after an episode's end for the reset (gymnasium's NEXT_STEP), whatever the
environment's metadata say; `ManiSkillVectorEnv` resets in the same step (SAME_STEP), so
that RLlib would take the next episode's first observation for the last one's final one and
drop the first transition of each. RLlib's `DictInfoToList` takes infos in numpy only.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.envs.sim import TRAIN_SEEDS


class NextStepVectorEnv(gym.vector.VectorEnv):
    """NEXT_STEP autoreset and numpy around a `BatchEnv`; what `SyncVectorEnv` does for `SimEnv`s.

    Episodes run their full length and are truncated. Start seeds after the first are drawn, for
    each environment from its own generator, from those of training.
    """

    def __init__(self, env: BatchEnv) -> None:
        self._env, self.num_envs = env, env.num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        obs_dim, act_dim = env.info.obs_dim, env.info.act_dim
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (act_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._steps = np.zeros(self.num_envs, int)
        self._rngs = [seeding.np_random()[0] for _ in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start every environment anew, the first from `seed`, the next from one more, ..."""
        if seed is None or isinstance(seed, int):
            first = seed
            seed = [None if first is None else first + i for i in range(self.num_envs)]
        for i, one in enumerate(seed):
            if one is not None:
                self._rngs[i] = seeding.np_random(one)[0]
        starts = [self._draw(i) if one is None else one for i, one in enumerate(seed)]
        self._steps[:] = 0
        return _numpy(self._env.reset(starts, range(self.num_envs))), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        ended = self._steps >= self._env.info.max_episode_steps
        if ended.all():
            obs, reward, success = self._restart_all()
        else:
            batch = np.clip(actions, -1, 1).astype(np.float32)
            results = self._env.step(torch.from_numpy(batch).to(self._env.device))
            obs, reward, success = (_numpy(result).copy() for result in results)
            self._steps += 1
            if ended.any():
                at = np.flatnonzero(ended).tolist()
                obs[at] = _numpy(self._env.reset([self._draw(i) for i in at], at))
                reward[at], success[at], self._steps[at] = 0.0, False, 0
        truncated = self._steps >= self._env.info.max_episode_steps
        info = {"success": success, "_success": ~ended}
        return obs, reward.astype(np.float64), np.zeros(self.num_envs, bool), truncated, info

    def _restart_all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        obs, _ = self.reset()
        return obs, np.zeros(self.num_envs), np.zeros(self.num_envs, bool)

    def _draw(self, index: int) -> int:
        return int(self._rngs[index].integers(TRAIN_SEEDS))

    def close_extras(self, **kwargs: Any) -> None:
        self._env.close()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
