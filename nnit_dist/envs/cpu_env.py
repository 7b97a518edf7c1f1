"""ManiSkill on a CPU: every episode in a new PhysX scene, and no work done twice.

States, success and rewards are bit for bit those of plain ManiSkill that is built anew for
each episode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.scene import ManiSkillScene

from nnit_dist.envs.accelerate import accelerate


class CpuEnv:
    """One ManiSkill environment with `reset` and `step` of its own.

    Args:
        env: a built environment with `sim_backend="physx_cpu"`.
        reward: whether steps compute the reward; 0 without.
        rebuild: build everything anew for each episode, which cameras need (67 ms).
    """

    def __init__(self, env: BaseEnv, reward: bool, rebuild: bool) -> None:
        self.base, self.reward, self.rebuild = env, reward, rebuild
        self._accelerated: ManiSkillScene | None = None
        self._set_action: Callable[[np.ndarray], None] | None = None
        # The main generator draws seeds for episodes that are given none; ours are given one.
        env._set_main_rng = lambda seed: None

    @torch.inference_mode()
    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed; returns the observation [obs_dim]."""
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
        """`BaseEnv.step` with an action [act_dim]: observation [obs_dim], reward, info."""
        env, scene = self.base, self.base.scene
        taken = self._act(action)
        env._elapsed_steps += 1
        scene.observed_poses = {}
        try:
            info = env.get_info()
            obs = env.get_obs(info, unflattened=True)
            reward = float(env.get_reward(obs=obs, action=taken, info=info)) if self.reward else 0.0
            return _flat(obs), reward, info
        finally:
            scene.observed_poses = None

    def _act(self, action: np.ndarray) -> torch.Tensor:
        """`BaseEnv._step_action`: set the drive targets and step the physics."""
        env = self.base
        if self._set_action is None:
            return env._step_action(action)
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
    """`torch.manual_seed` for the CPU's generator alone, as ManiSkill's physics is here.

    torch's own also stores a stack trace for each kind of accelerator that has not started,
    to seed it one day: 0.3 ms of a reset's 1.4.
    """
    plain = torch.manual_seed
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    try:
        yield
    finally:
        torch.manual_seed = plain


def renew_physics(scene: ManiSkillScene) -> None:
    """Move every entity of a CPU scene into a new PhysX scene, in its order of creation.

    PhysX keeps contacts and solver caches over a reset, so an episode would depend on those
    before it: one in six PushCube-v1 episodes differs from its repetition in another order.
    In a new scene an episode depends on its seed alone, bit for bit as after ManiSkill's own
    `reconfigure`, which builds everything anew and takes 67 ms where this takes 0.1.
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
