"""Faster classes for the bodies, controllers and gripper of a ManiSkill scene on a CPU.

ManiSkill makes two tensors each time a pose is read, and a step reads the same pose many times. An
action passes through a dozen tensors of eight numbers, and a grasp is computed by two 4x4 matrices.
Here a pose is read once for the observation of a step, during which nothing moves. Actions stay in
numpy, and a grasp is decided from its forces. Whatever would give other bits is left to ManiSkill.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.agents.controllers.base_controller import CombinedController
from mani_skill.agents.controllers.pd_joint_pos import (
    PDJointPosController,
    PDJointPosMimicController,
)
from mani_skill.agents.robots.panda import Panda, PandaWristCam
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.utils.sapien_utils import compute_total_impulse, get_pairwise_contacts
from mani_skill.utils.structs.actor import Actor
from mani_skill.utils.structs.articulation import Articulation
from mani_skill.utils.structs.link import Link
from mani_skill.utils.structs.pose import Pose

# Grasps closer than this to a limit, relative to it, are left to ManiSkill's float32 arithmetic.
MARGIN = 1e-3


def accelerate(env: BaseEnv) -> Callable[[np.ndarray], None] | None:
    """Give the parts of `env` the faster classes below.

    Returns a function that sets an action [act_dim] from numpy, or None if a controller is not of
    a supported class.
    """
    scene, agent = env.scene, env.agent
    scene.observed_poses = None
    for actor in scene.actors.values():
        _become(actor, Actor, _ObservedActor)
    for articulation in scene.articulations.values():
        _become(articulation, Articulation, _DirectArticulation)
        for link in articulation.links:
            _become(link, Link, _ObservedLink)
    for plain, fast in ((Panda, _QuickPanda), (PandaWristCam, _QuickPandaWristCam)):
        if type(agent) is plain:
            agent.__class__ = fast
    return _take_numpy(getattr(agent, "controller", None))


def _become(body: Any, plain: type, fast: type) -> None:
    if len(body._objs) == 1 and type(body) is plain:
        body.__class__ = fast


def _observed(body: Any, read: Callable[[], sapien.Pose]) -> Pose:
    """The body's pose, which is read once while a step is observed."""
    cache = body.scene.observed_poses
    pose = None if cache is None else cache.get(id(body))
    if pose is None:
        raw = read()
        pose = _ObservedPose(raw_pose=torch.from_numpy(np.concatenate((raw.p, raw.q))[None]))
        if cache is not None:
            cache[id(body)] = pose
    return pose


class _ObservedPose(Pose):
    """A pose whose position is sliced once."""

    @cached_property
    def p(self) -> torch.Tensor:
        return self.raw_pose[..., :3]


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


def _take_numpy(controller: Any) -> Callable[[np.ndarray], None] | None:
    """Make joint position controllers take actions in numpy, if all are of supported classes."""
    if type(controller) is not CombinedController:
        return None
    parts = controller.controllers
    fast = {PDJointPosController: _JointPos, PDJointPosMimicController: _MimicJointPos}
    if any(type(part) not in fast or part.config.interpolate for part in parts.values()):
        return None
    for part in parts.values():
        part.__class__ = fast[type(part)]
        part.prepare()
    shares = [
        (part.set_action, slice(*controller.action_mapping[uid])) for uid, part in parts.items()
    ]

    def set_action(action: np.ndarray) -> None:
        for set_part, share in shares:
            set_part(action[None, share])

    return set_action


class _JointPos(PDJointPosController):
    """`PDJointPosController` without interpolation, in numpy."""

    def prepare(self) -> None:
        self._robot = self.articulation._objs[0]
        self._drives = [joint._objs[0] for joint in self.joints]
        self._indices = self.active_joint_indices.numpy()
        if self._normalize_action:
            low, high = self.action_space_low, self.action_space_high
            self._middle = (0.5 * (high + low)).numpy()
            self._half = (0.5 * (high - low)).numpy()

    def set_action(self, action: np.ndarray) -> None:
        self._drive(self._aim(self._scaled(action)))

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        if not self._normalize_action:
            return action
        return self._middle + self._half * np.minimum(np.maximum(action, -1.0), 1.0)

    def _from(self) -> np.ndarray:
        """Joint positions [1, joints] that a delta is added to."""
        if self.config.use_target:
            return self._target_qpos.numpy()
        return self._robot.qpos[None, self._indices]

    def _aim(self, action: np.ndarray) -> np.ndarray:
        if self.config.use_delta:
            return self._from() + action
        return np.broadcast_to(action, (1, len(self._drives))).copy()

    def _drive(self, target: np.ndarray) -> None:
        self._target_qpos = torch.from_numpy(target)
        for joint, value in zip(self._drives, target[0].tolist(), strict=True):
            joint.set_drive_target(value)

    def before_simulation_step(self) -> None:
        pass


class _MimicJointPos(_JointPos, PDJointPosMimicController):
    """`PDJointPosMimicController` without interpolation, in numpy."""

    def prepare(self) -> None:
        super().prepare()
        self._led, self._leads = self.mimic_joint_indices, self.mimic_control_joint_indices
        self._led, self._leads = self._led.numpy(), self._leads.numpy()
        self._controls = self.control_joint_indices.numpy()
        self._times, self._plus = self._multiplier.numpy(), self._offset.numpy()

    def _aim(self, action: np.ndarray) -> np.ndarray:
        target = self._target_qpos.numpy().copy()
        if self.config.use_delta:
            action = self._from()[:, self._controls] + action
        target[:, self._controls] = action
        target[:, self._led] = target[:, self._leads] * self._times + self._plus
        return target


class _QuickGrasp:
    """`Panda.is_grasping` from forces and angles in double precision."""

    def is_grasping(self: Any, object: Actor, min_force: float = 0.5, max_angle: float = 85):
        fingers = self.finger1_link._bodies[0], self.finger2_link._bodies[0]
        contacts, held = self.scene.px.get_contacts(), object._bodies[0].entity
        grasped = True
        for finger, side in zip(fingers, (1.0, -1.0), strict=True):
            pairs = get_pairwise_contacts(contacts, finger.entity, held)
            force = compute_total_impulse(pairs) / self.scene.px.timestep
            presses = _presses(side * force, finger.entity_pose.q.tolist(), min_force, max_angle)
            if presses is None:
                return Panda.is_grasping(self, object, min_force, max_angle)
            grasped = grasped and presses
        return torch.tensor([grasped])


def _presses(
    force: np.ndarray, orientation: list[float], min_force: float, max_angle: float
) -> bool | None:
    """Whether a force [3] in N on a finger is strong enough and along its opening direction.

    The finger's orientation is a quaternion (w, x, y, z), and the angle between force and direction
    may be up to `max_angle` degrees. None if the answer depends on rounding.
    """
    strength = math.sqrt(force @ force)
    if abs(strength - min_force) <= MARGIN * min_force:
        return None
    if strength < min_force:
        return False
    w, x, y, z = orientation
    opening = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    cosine = float(force @ opening) / strength
    angle = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
    return None if abs(angle - max_angle) <= MARGIN * 90 else angle < max_angle


class _QuickPanda(_QuickGrasp, Panda):
    pass


class _QuickPandaWristCam(_QuickGrasp, PandaWristCam):
    pass
