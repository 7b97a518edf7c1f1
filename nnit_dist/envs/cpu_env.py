"""ManiSkill on a CPU: every episode in a new PhysX scene, and no work done twice.

States, success and rewards are bit for bit those of plain ManiSkill that is built anew for
each episode.

Every look at a pose makes two tensors, and a step looks at the same pose again and again;
every joint's drive target is converted on its own. Here a pose is read once a step, while
the step is observed and nothing can move, and targets are handed over as one array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.utils.structs.actor import Actor
from mani_skill.utils.structs.articulation import Articulation
from mani_skill.utils.structs.link import Link
from mani_skill.utils.structs.pose import Pose


class CpuEnv:
    """One ManiSkill environment with `reset` and `step` of its own.

    Args:
        env: a built environment with `sim_backend="physx_cpu"`.
        reward: whether steps compute the reward; 0 without.
        rebuild: build everything anew for each episode, which cameras need (67 ms).
    """

    def __init__(self, env: BaseEnv, reward: bool, rebuild: bool) -> None:
        self.base, self.reward, self.rebuild = env, reward, rebuild

    def reset(self, seed: int) -> torch.Tensor:
        """Start the episode of a seed; returns the observation [1, obs_dim]."""
        if not self.rebuild:
            renew_physics(self.base.scene)
        obs, _ = self.base.reset(seed=seed, options={"reconfigure": self.rebuild})
        _accelerate(self.base.scene)
        return obs

    def step(self, action: np.ndarray) -> tuple[torch.Tensor, float, dict]:
        """`BaseEnv.step`: observation [1, obs_dim], reward, info."""
        env, scene = self.base, self.base.scene
        taken = env._step_action(action)
        env._elapsed_steps += 1
        scene.observed_poses = {}
        try:
            info = env.get_info()
            obs = env.get_obs(info, unflattened=True)
            reward = float(env.get_reward(obs=obs, action=taken, info=info)) if self.reward else 0.0
            return env._flatten_raw_obs(obs), reward, info
        finally:
            scene.observed_poses = None


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


def _accelerate(scene: Any) -> None:
    """Give the bodies of a scene the faster classes below, once."""
    if hasattr(scene, "observed_poses"):
        return
    scene.observed_poses = None
    for actor in scene.actors.values():
        _become(actor, Actor, _ObservedActor)
    for articulation in scene.articulations.values():
        _become(articulation, Articulation, _DirectArticulation)
        for link in articulation.links:
            _become(link, Link, _ObservedLink)


def _become(body: Any, plain: type, fast: type) -> None:
    if len(body._objs) == 1 and type(body) is plain:
        body.__class__ = fast


def _observed(body: Any, read: Callable[[], sapien.Pose]) -> Pose:
    """The body's pose; while a step is observed, read once."""
    seen = body.scene.observed_poses
    pose = None if seen is None else seen.get(id(body))
    if pose is None:
        place = read()
        pose = Pose(raw_pose=torch.from_numpy(np.concatenate((place.p, place.q))[None]))
        if seen is not None:
            seen[id(body)] = pose
    return pose


class _ObservedActor(Actor):
    @property
    def pose(self) -> Pose:
        return _observed(self, lambda: self._objs[0].pose)

    @pose.setter
    def pose(self, value: Any) -> None:
        Actor.pose.fset(self, value)


class _ObservedLink(Link):
    @property
    def pose(self) -> Pose:
        return _observed(self, lambda: self._objs[0].entity_pose)

    @pose.setter
    def pose(self, value: Any) -> None:
        Link.pose.fset(self, value)


class _DirectArticulation(Articulation):
    def set_joint_drive_targets(self, targets, joints=None, joint_indices=None) -> None:
        values = targets.numpy()
        for i, joint in enumerate(joints or ()):
            joint._objs[0].drive_target = values[0, i : i + 1]
