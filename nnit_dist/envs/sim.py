"""One ManiSkill3 environment a process, on CPU, as a plain gymnasium environment in numpy.

State observations; an episode always runs its full length (ManiSkill's
`ignore_terminations` protocol), because every step's reward is positive and an
episode that ended on success would punish success.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.envs import headless
from nnit_dist.envs.tasks import check_task, prepare_process

# Seeds below start training episodes only, so no evaluation start is ever trained on.
TRAIN_SEEDS = 2**30
VALIDATION_SEED = 2**30
TEST_SEED = 2**30 + 2**28


class SimEnv(gym.Env):
    """A ManiSkill3 task on one CPU core.

    Observations are float32 [obs_dim], actions float32 [act_dim] in [-1, 1], rewards
    ManiSkill's normalised dense reward (0 with `reward=False`, which is faster), and
    `info["success"]` a bool.

    Raises:
        NnitError: the task or the control mode cannot be used here (see `check_task`).
    """

    def __init__(
        self, task: str, control_mode: str = DEFAULT_CONTROL_MODE, reward: bool = True, render=False
    ) -> None:
        from nnit_dist.envs.cpu_env import CpuEnv

        torch.set_num_threads(1)
        self.rewarded = reward
        self._max_steps = check_task(task)
        self._env = CpuEnv(
            make_maniskill(task, control_mode, reward, render=render), reward, rebuild=render
        )
        obs = self._env.reset(seed=0)
        action_space = self._env.base.single_action_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, obs.shape, np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, action_space.shape, np.float32)
        self.info = TaskInfo(
            task, control_mode, obs.shape[0], action_space.shape[0], self._max_steps
        )
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; without a seed, one of the training seeds is drawn."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(TRAIN_SEEDS))
        obs = self._env.reset(seed)
        self._elapsed = 0
        return obs, {}

    def step(self, action: np.ndarray):
        obs, reward, info = self._env.step(action)
        self._elapsed += 1
        truncated = self._elapsed >= self._max_steps
        return obs, reward, False, truncated, {"success": bool(info["success"])}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """RGB picture of the scene, uint8 [height, width, 3]; needs `render=True`."""
        return self._env.base.render_rgb_array()[0].cpu().numpy()

    def positions(self) -> dict[str, np.ndarray]:
        """Positions [3] in metres of the tool and of every movable or marked actor."""
        scene = self._env.base.scene
        actors = {
            name: actor.pose.p[0].numpy()
            for name, actor in scene.actors.items()
            if not name.startswith(("table", "ground"))
        }
        return {"tool": self._env.base.agent.tcp.pose.p[0].numpy(), **actors}

    def state(self) -> dict:
        """The simulation's state, nested dicts of tensors [1, D] (`BaseEnv.get_state_dict`)."""
        return self._env.base.get_state_dict()

    def close(self) -> None:
        self._env.base.close()


def task_info(task: str, control_mode: str = DEFAULT_CONTROL_MODE) -> TaskInfo:
    """Sizes of a task, read from a real environment (a few seconds)."""
    env = SimEnv(task, control_mode, reward=False)
    env.close()
    return env.info


def make_maniskill(
    task: str,
    control_mode: str,
    reward: bool,
    sim_backend: str = "physx_cpu",
    num_envs: int = 1,
    render: bool = False,
) -> Any:
    """ManiSkill's own environment, state observations; with or without a Vulkan device.

    Raises:
        NnitError: it cannot be built, or `render` is asked for where nothing can render.
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
            f"{task} cannot be built with control mode {control_mode!r} ({error}). "
            f"Most tasks have {DEFAULT_CONTROL_MODE} and pd_ee_delta_pos."
        ) from None
    return env.unwrapped


def _render_backend() -> str:
    """The GPU renders where there is one, else Vulkan on the CPU (lavapipe)."""
    return "gpu" if torch.cuda.is_available() else "cpu"
