"""The plain ManiSkill loop to compare with: `gym.make` with a dense reward, and `env.step`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nnit_dist.core.task import DEFAULT_CONTROL_MODE
from nnit_dist.envs import headless
from nnit_dist.envs.tasks import check_task


def bare_env(task: str, control_mode: str = DEFAULT_CONTROL_MODE) -> Any:
    """ManiSkill's own environment of a task, on the CPU; raises NnitError if that is unusable."""
    import gymnasium as gym

    check_task(task)  # registers the tasks
    if not headless.has_render_device():
        headless.install_stand_ins()
    return gym.make(
        task,
        obs_mode="state",
        control_mode=control_mode,
        reward_mode="normalized_dense",
        sim_backend="physx_cpu",
        render_backend="none",
    )


def run_episode(env: Any, act: Callable[[Any], np.ndarray], seed: int) -> int:
    """Run an episode of any gymnasium environment to its end; returns its env steps."""
    obs, _ = env.reset(seed=seed)
    steps, truncated = 0, False
    while not truncated:
        obs, _, _, truncated, _ = env.step(act(obs))
        steps += 1
    return steps
