"""An env runner of RLlib that keeps rollouts as arrays, at the speed of the simulator.

RLlib's runner loops in Python over all environments in each step, for episode objects and
connectors. Here all episodes of a batch start together and run their full length, so a loop is not
needed.

Shapes: T steps, N environments, D observations, A actions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from torch import Tensor

from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.envs.sim import TRAIN_SEEDS


@dataclass
class Rollout:
    """T steps of N environments.

    `obs` and `next_obs` are float32 [T, N, D], `actions` (not clipped) [T, N, A], `logp` and
    `rewards` [T, N]. `ended`, bool [T], says after which steps all episodes ended.
    """

    obs: Tensor
    next_obs: Tensor
    actions: Tensor
    logp: Tensor
    rewards: Tensor
    ended: Tensor

    def env_steps(self) -> int:
        """Steps of all environments together, T * N."""
        return self.rewards.numel()

    __len__ = env_steps


class RolloutRunner(SingleAgentEnvRunner):
    """Samples rollouts from the `BatchEnv` that `env_config["make_env"]` makes."""

    env: Any
    module: Any
    _obs: Tensor
    _elapsed: int

    def make_env(self) -> None:
        """Build the environments; RLlib calls this."""
        make: Callable[[int], BatchEnv] = self.config.env_config["make_env"]
        self.batch = make(self.config.num_envs_per_env_runner)
        self.env, self.num_envs = _Spaces(self.batch), self.batch.num_envs
        self._needs_initial_reset = True

    def make_module(self) -> None:
        """Build the module on the device of the environments; RLlib calls this."""
        self._device = self.batch.device
        super().make_module()

    def sample(  # type: ignore[override]  # as `PPO.training_step` and tests call it
        self, *, num_timesteps: int | None = None, **kwargs: Any
    ) -> list[Rollout]:
        """Sample one rollout.

        Args:
            num_timesteps: env steps of all environments together; by default RLlib's fragment.
        """
        if self._needs_initial_reset:
            self._rng = np.random.default_rng(self._seed)
            self._returns = torch.zeros(self.num_envs, device=self.batch.device)
            self._start()
            self._needs_initial_reset = False
        steps = self.config.get_rollout_fragment_length(self.worker_index)
        if num_timesteps is not None:
            steps = math.ceil(num_timesteps / self.num_envs)
        columns = zip(*(self._step() for _ in range(steps)), strict=True)
        rollout = Rollout(*(torch.stack(column) for column in columns))
        self._increase_sampled_metrics(len(rollout), int(rollout.ended.sum()) * self.num_envs)
        return [rollout]

    @torch.no_grad()
    def _step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        obs = self._obs
        inputs = self.module.forward_exploration({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
        mean, log_std = inputs.chunk(2, -1)
        actions = mean + log_std.exp() * torch.randn_like(mean)
        self._obs, rewards, _ = self.batch.step(actions.clamp(-1, 1))
        next_obs = self._obs
        rewards = rewards.float()
        self._elapsed += 1
        self._returns += rewards
        ended = self._elapsed == self.batch.info.max_episode_steps
        if ended:
            self._log_episode_metrics(self._elapsed, float(self._returns.mean()), 0.0)
            self._start()
        logp = gaussian_logp(mean, log_std, actions)
        return obs, next_obs, actions, logp, rewards, torch.tensor(ended)

    def _start(self) -> None:
        seeds = self._rng.integers(TRAIN_SEEDS, size=self.num_envs).tolist()
        self._obs = self.batch.reset(seeds, range(self.num_envs))
        self._returns.zero_()
        self._elapsed = 0


class _Spaces(gym.vector.VectorEnv):
    """The spaces of a batch of environments, as RLlib reads them."""

    def __init__(self, batch: BatchEnv) -> None:
        self._batch, self.num_envs = batch, batch.num_envs
        obs_dim, act_dim = batch.info.obs_dim, batch.info.act_dim
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (act_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the simulators; gymnasium's `close` calls this."""
        self._batch.close()


def gaussian_logp(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density [...] of actions [..., A] under a diagonal Gaussian with mean [..., A]."""
    z = (actions - mean) / log_std.exp()
    return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
