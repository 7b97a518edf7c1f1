"""ManiSkill on a CPU, with every episode in a new PhysX scene and without repeated work.

States, success and rewards equal bit for bit those of plain ManiSkill that is rebuilt for each
episode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.scene import ManiSkillScene

from nnit_dist.envs.accelerate import accelerate
from nnit_dist.envs.actions import ActionBounds


class CpuEnv:
    """A ManiSkill environment with a faster `reset` and `step`.

    Args:
        env: an environment with `sim_backend="physx_cpu"`.
        reward: whether steps compute the reward; 0 without.
        rebuild: rebuild everything for each episode, as cameras require (67 ms).
    """

    def __init__(self, env: BaseEnv, reward: bool, rebuild: bool) -> None:
        self.base, self.reward, self.rebuild = env, reward, rebuild
        self._accelerated: ManiSkillScene | None = None
        self._set_action: Callable[[np.ndarray], None] | None = None
        self._bounds = ActionBounds(env.single_action_space)
        # The main generator draws seeds for episodes without one. Ours always have one.
        env._set_main_rng = lambda seed: None

    @torch.inference_mode()
    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed; returns its observation float32 [obs_dim]."""
        if not self.rebuild:
            renew_physics(self.base.scene)
        with _seed_cpu_only():
            obs, _ = self.base.reset(seed=seed, options={"reconfigure": self.rebuild})
        if self.base.scene is not self._accelerated:
            self._set_action = accelerate(self.base)
            self._accelerated = self.base.scene
        return obs[0].numpy().astype(np.float32)

    @torch.inference_mode()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, dict]:
        """`BaseEnv.step` with an action [act_dim]; returns observation [obs_dim], reward, info.

        Raises:
            ValueError: the action is NaN.
        """
        env, scene = self.base, self.base.scene
        action_tensor = self._act(action)
        env._elapsed_steps += 1
        scene.observed_poses = {}
        try:
            info = env.get_info()
            obs = env.get_obs(info, unflattened=True)
            reward = 0.0
            if self.reward:
                reward = float(env.get_reward(obs=obs, action=action_tensor, info=info))
            return _flat(obs), reward, info
        finally:
            scene.observed_poses = None

    def _act(self, action: np.ndarray) -> torch.Tensor:
        """`BaseEnv._step_action`: set the drive targets and step the physics."""
        env = self.base
        if self._set_action is None:
            return env._step_action(self._bounds.split(action))
        if np.isnan(action).any():
            raise ValueError(f"an action cannot be NaN: {action}")
        self._set_action(action)
        env._before_control_step()
        for _ in range(env._sim_steps_per_control):
            env._before_simulation_step()
            env.scene.step()
            env._after_simulation_step()
        env._after_control_step()
        return torch.from_numpy(action[None])


def _flat(obs: dict) -> np.ndarray:
    """`BaseEnv._flatten_raw_obs` of one environment, float32 [obs_dim]."""
    parts: list[np.ndarray] = []
    _collect(obs, parts)
    return np.concatenate(parts, dtype=np.float32)


def _collect(obs: dict, parts: list[np.ndarray]) -> None:
    for value in obs.values():
        if isinstance(value, dict):
            _collect(value, parts)
        else:
            parts.append(value.numpy().reshape(-1))


@contextmanager
def _seed_cpu_only() -> Iterator[None]:
    """Let `torch.manual_seed` seed only the CPU's generator, which suffices for physics on a CPU.

    torch's function also stores a stack trace for each kind of accelerator that has not started,
    which takes 0.3 of the 1.4 ms of a reset.
    """
    original = torch.manual_seed
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    try:
        yield
    finally:
        torch.manual_seed = original


def renew_physics(scene: ManiSkillScene) -> None:
    """Move all entities of a CPU scene into a new PhysX scene, in the order of their creation.

    PhysX keeps contacts and solver caches over a reset, so an episode would depend on the episodes
    before it: in another order, one in six episodes of PushCube-v1 differs. In a new scene an
    episode depends only on its seed, bit for bit as after ManiSkill's `reconfigure`. That rebuilds
    everything and takes 67 ms; this takes 0.1 ms.
    """
    old, timestep = scene.sub_scenes[0], scene.px.timestep
    entities = old.get_entities()
    for entity in entities:
        old.remove_entity(entity)
    new = sapien.Scene([sapien.physx.PhysxCpuSystem()])
    for entity in entities:
        new.add_entity(entity)
    scene.sub_scenes[0], scene.px = new, new.physx_system
    scene.px.timestep = timestep
