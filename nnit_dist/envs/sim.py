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
from nnit_dist.envs.tasks import check_task, prepare_process

# Smaller seeds are for training episodes only, so training never uses a start of an evaluation.
TRAIN_SEEDS = 2**30
VALIDATION_SEED = 2**30
TEST_SEED = 2**30 + 2**28


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
        from nnit_dist.envs.cpu_env import CpuEnv

        torch.set_num_threads(1)
        self.rewarded = reward
        self._max_steps = check_task(task)
        base = make_maniskill(task, control_mode, reward=reward, render=render)
        self._env = CpuEnv(base, reward, rebuild=render)
        obs = self._env.reset(seed=0)
        self.bounds = ActionBounds(self._env.base.single_action_space)
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
        self._elapsed = 0
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
        truncated = self._elapsed >= self._max_steps
        return obs, reward, False, truncated, {"success": bool(info["success"])}

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
        return {"tool": self._env.base.agent.tcp.pose.p[0].numpy(), **actors}

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
    prepare_process()
    if not headless.has_render_device():
        if render:
            raise NnitError("no Vulkan device to render with; see `nnit doctor`.")
        headless.install_stand_ins()
    try:
        env = gym.make(
            task,
            obs_mode="state",
            control_mode=control_mode,
            reward_mode="normalized_dense" if reward else "none",
            sim_backend=sim_backend,
            num_envs=num_envs,
            render_backend=_render_backend() if render else "none",
            render_mode="rgb_array" if render else None,
            human_render_camera_configs={"width": 256, "height": 256},
        )
    except (AssertionError, KeyError) as error:
        raise NnitError(
            f"{task} cannot be built with control mode {control_mode!r}"
            f"{_control_modes(task, error)}"
        ) from None
    return env.unwrapped


def _control_modes(task: str, error: Exception) -> str:
    """End of a message on a control mode: those of the task, or the error if it has none."""
    try:
        env = gym.make(task, obs_mode="state", sim_backend="physx_cpu", render_backend="none")
    except Exception:
        return f" ({error})."
    modes = getattr(env.get_wrapper_attr("agent"), "supported_control_modes", [])
    env.close()
    return f". Its control modes are {', '.join(modes)}."


def _render_backend() -> str:
    """The GPU if there is one, else Vulkan on the CPU (lavapipe)."""
    return "gpu" if torch.cuda.is_available() else "cpu"
