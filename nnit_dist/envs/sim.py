"""A ManiSkill3 environment on a CPU as a gymnasium environment in numpy, with state observations.

An episode always runs its full length, as in ManiSkill's `ignore_terminations` protocol. Rewards
are positive, so ending an episode at success would punish success.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.envs import headless
from nnit_dist.envs.actions import ActionBounds
from nnit_dist.envs.tasks import check_task, prepare_process, reward_mode

# Smaller seeds are for training episodes only, so training never uses a start of an evaluation.
TRAIN_SEEDS = 2**30
VALIDATION_SEED = 2**30
TEST_SEED = 2**30 + 2**28

# The control suite (MS-*) has rewards of up to 1 a step, and no success. There an episode succeeds
# in its last step, if its mean reward is at least this.
SUCCESS_BY_RETURN = 0.8


class SimEnv(gym.Env):
    """A ManiSkill3 task on one CPU core.

    Observations are float32 [obs_dim] and actions float32 [act_dim], normalized to [-1, 1];
    `bounds` are those of the control mode's own units. The reward is ManiSkill's normalized dense
    reward; without `reward` it is 0 and steps are faster. Only with `render` can pictures be taken.

    Raises:
        NnitError: the task or the control mode cannot be used here (see `check_task`).
    """

    def __init__(
        self,
        task: str,
        control_mode: str = DEFAULT_CONTROL_MODE,
        reward: bool = True,
        render: bool = False,
    ) -> None:
        torch.set_num_threads(1)
        self.rewarded = reward
        self._max_steps = check_task(task)
        # Where a task does not say what success is, its reward has to.
        self._by_return = by_return(task)
        reward = reward or self._by_return
        base = make_maniskill(task, control_mode, reward=reward, render=render)

        from nnit_dist.envs.cpu_env import CpuEnv

        self._env = CpuEnv(base, reward, rebuild=render)
        obs = self._env.reset(seed=0)
        if not self._by_return and "success" not in self._env.base.get_info():
            raise NnitError(f"{task} does not say what success is, so it cannot be measured.")
        self.bounds = ActionBounds(self._env.base.single_action_space)
        self._return = 0.0
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, obs.shape, np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.bounds.act_dim,), np.float32)
        self.info = TaskInfo(
            task,
            control_mode,
            obs.shape[0],
            self.bounds.act_dim,
            self._max_steps,
            robot_of(self._env.base),
        )
        self._elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, bool]]:
        """Start the episode of a seed, by default of a random training seed."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(TRAIN_SEEDS))
        obs = self._env.reset(seed)
        self._elapsed, self._return = 0, 0.0
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        """Take a normalized action [act_dim]; returns obs, reward, terminated, truncated, info.

        `info["success"]` says whether the task is solved in this step.
        """
        return self.apply(self.bounds.from_normalized(action))

    def apply(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        """As `step`, with an action [act_dim] in the control mode's own units."""
        obs, reward, info = self._env.step(action)
        self._elapsed += 1
        self._return += reward
        truncated = self._elapsed >= self._max_steps
        if self._by_return:
            success = truncated and self._return >= SUCCESS_BY_RETURN * self._max_steps
        else:
            success = bool(info["success"])
        return obs, reward, False, truncated, {"success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A picture of the scene, RGB uint8 [height, width, 3]; requires `render`."""
        return self._env.base.render_rgb_array()[0].cpu().numpy()

    def positions(self) -> dict[str, np.ndarray]:
        """Positions [3] in meters of the tool and of all actors but table and ground."""
        scene = self._env.base.scene
        actors = {
            name: actor.pose.p[0].numpy()
            for name, actor in scene.actors.items()
            if not name.startswith(("table", "ground"))
        }
        robot = getattr(self._env.base.agent, "agents", [self._env.base.agent])[0]
        tool = getattr(robot, "tcp", robot.robot).pose
        return {"tool": tool.p[0].numpy(), **actors}

    def state(self) -> dict:
        """State of the simulation, nested dicts of tensors [1, D] (`BaseEnv.get_state_dict`)."""
        return self._env.base.get_state_dict()

    def close(self) -> None:
        """Release the simulator."""
        self._env.base.close()


def task_info(task: str, control_mode: str = DEFAULT_CONTROL_MODE) -> TaskInfo:
    """Sizes of a task, read from an environment that is built for it (a few seconds).

    Raises:
        NnitError: the task or the control mode cannot be used here.
    """
    env = SimEnv(task, control_mode, reward=False)
    env.close()
    return env.info


def check_for_networks(task: str, control_mode: str) -> tuple[TaskInfo, ActionBounds]:
    """Sizes of a task and bounds of its actions, which networks need.

    Raises:
        NnitError: the task or the control mode cannot be used here, or an action has no bounds.
    """
    env = SimEnv(task, control_mode, reward=False)
    env.close()
    env.bounds.check(task, control_mode)
    return env.info, env.bounds


def by_return(task: str) -> bool:
    """Whether success is a matter of the return: see `SUCCESS_BY_RETURN`."""
    return task.startswith("MS-")


def robot_of(base: Any) -> str:
    """Names of a ManiSkill environment's robots, for example `panda`."""
    agents = getattr(base.agent, "agents", [base.agent])
    return "+".join(agent.uid for agent in agents if agent is not None)


def make_maniskill(
    task: str,
    control_mode: str,
    *,
    reward: bool,
    sim_backend: str = "physx_cpu",
    num_envs: int = 1,
    render: bool = False,
) -> Any:
    """ManiSkill's environment of a task, with state observations.

    Without a Vulkan device, visuals are replaced by inert ones.

    Raises:
        NnitError: the environment cannot be built, or `render` is set without a Vulkan device.
    """
    mode_of_reward = reward_mode(task, reward)
    if not headless.has_render_device():
        if render:
            raise NnitError("no Vulkan device to render with; see `nnit doctor`.")
        headless.install_stand_ins()
    try:
        env = gym.make(
            task,
            obs_mode="state",
            control_mode=control_mode,
            reward_mode=mode_of_reward,
            sim_backend=sim_backend,
            num_envs=num_envs,
            render_backend=_render_backend() if render else "none",
            render_mode="rgb_array" if render else None,
            human_render_camera_configs={"width": 256, "height": 256},
        )
    except NnitError as error:
        raise NnitError(f"{task} cannot be used: {error}") from None
    except (Exception, SystemExit) as error:  # each task fails in a way of its own
        modes = control_modes(task)
        if modes and control_mode not in modes:
            reason = f"it has no control mode {control_mode!r}, only {', '.join(modes)}."
        else:
            reason = f"ManiSkill cannot build it on this machine ({_in_short(error)})."
        raise NnitError(f"{task} cannot be used: {reason}") from error
    return env.unwrapped


def control_modes(task: str) -> list[str]:
    """Control modes of a task's robot; empty if the task cannot be built at all."""
    prepare_process()
    if not headless.has_render_device():
        headless.install_stand_ins()
    try:
        env = gym.make(task, obs_mode="state", sim_backend="physx_cpu", render_backend="none")
    except (Exception, SystemExit):
        return []
    agent = env.get_wrapper_attr("agent")
    robot = getattr(agent, "agents", [agent])[0]
    env.close()
    return list(getattr(robot, "supported_control_modes", []))


def _in_short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _render_backend() -> str:
    """The GPU if there is one, else Vulkan on the CPU (lavapipe)."""
    return "gpu" if torch.cuda.is_available() else "cpu"
