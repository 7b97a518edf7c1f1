"""Many environments of a task that step together, on a GPU or on a CPU core.

`GpuEnv` is ManiSkill's GPU simulation. ManiSkill draws all start states of a batch from the seed of
the first environment, so its episodes have no start seeds of their own. `GpuEnv` therefore takes
start states from the CPU simulator, and a start seed means the same start state on both.

`StackedEnv` steps several CPU environments in a loop. It has the same interface.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import TaskInfo
from nnit_dist.envs.actions import ActionBounds
from nnit_dist.envs.sim import SimEnv, by_return, make_maniskill, robot_of
from nnit_dist.envs.tasks import check_task

# How far the observation of a restored start state may be from the original, in the units of the
# observation (m, rad, m/s). This allows for rounding, but not for another start state.
RESTORED_WITHIN = 1e-3

# State of the simulation: arrays [D], in dicts by kind of body and by name.
SimState: TypeAlias = "np.ndarray | dict[str, SimState]"


class BatchEnv(Protocol):
    """N environments of a task. Tensors are float32 on `device`."""

    info: TaskInfo
    bounds: ActionBounds
    num_envs: int
    device: torch.device

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        """Start the episodes of `seeds` in the environments with the indices `at`.

        Returns their observations [len(at), obs_dim]. The other environments do not change.
        """

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take normalized actions [N, act_dim]; returns obs [N, obs_dim], rewards, success [N]."""

    def close(self) -> None:
        """Release the simulators."""


class StackedEnv:
    """N CPU environments that step one after the other.

    Without `reward`, rewards are 0 and steps are faster.

    Raises:
        NnitError: the task or the control mode cannot be used here (see `check_task`).
    """

    def __init__(self, task: str, control_mode: str, num_envs: int, *, reward: bool) -> None:
        self._envs = [SimEnv(task, control_mode, reward) for _ in range(num_envs)]
        self.info, self.bounds = self._envs[0].info, self._envs[0].bounds
        self.num_envs = num_envs
        self.device = torch.device("cpu")

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        """As `BatchEnv.reset`."""
        pairs = zip(seeds, at, strict=True)
        return torch.from_numpy(np.stack([self._envs[i].reset(seed=seed)[0] for seed, i in pairs]))

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `BatchEnv.step`."""
        results = [
            env.step(action) for env, action in zip(self._envs, actions.numpy(), strict=True)
        ]
        obs, rewards, _, _, infos = zip(*results, strict=True)
        success = torch.tensor([info["success"] for info in infos])
        return torch.from_numpy(np.stack(obs)), torch.tensor(rewards), success

    def close(self) -> None:
        """Release the simulators."""
        for env in self._envs:
            env.close()


@dataclass(frozen=True)
class Start:
    """The start of an episode: the state of the simulation, and the observation [obs_dim]."""

    state: SimState
    obs: np.ndarray


def record_start(env: SimEnv, seed: int) -> Start:
    """Start the episode of a seed in the CPU simulator and record its start."""
    obs, _ = env.reset(seed=seed)
    return Start(_each(lambda value: value[0].numpy().copy(), env.state()), obs)


class GpuEnv:
    """ManiSkill's GPU simulation of a task.

    Args:
        reward: whether steps compute the reward; 0 without.
        starts: returns the starts of some seeds (`record_start`) from another process, since the
            CPU simulator is not reliable in a process that simulates on a GPU. If it is None,
            ManiSkill draws all start states from the first seed, which suffices for training.
        sim_backend: `physx_cuda`, or `physx_cpu` with a single environment for tests.

    Raises:
        NnitError: there is no GPU, or the task or control mode cannot be used here.
    """

    def __init__(
        self,
        task: str,
        control_mode: str,
        num_envs: int,
        *,
        reward: bool,
        starts: Callable[[Sequence[int]], list[Start]] | None,
        sim_backend: str = "physx_cuda",
    ) -> None:
        steps = check_task(task)
        if by_return(task):
            raise NnitError(f"{task} has no success on a GPU; simulate it with physx_cpu.")
        if sim_backend == "physx_cuda" and not torch.cuda.is_available():
            raise NnitError("physx_cuda needs a CUDA GPU; simulate with physx_cpu here.")
        self._base = make_maniskill(
            task, control_mode, reward=reward, sim_backend=sim_backend, num_envs=num_envs
        )
        self._starts, self.num_envs = starts, num_envs
        self.device = torch.device(self._base.device)
        obs_dim = self._base.single_observation_space.shape[0]
        self.bounds = ActionBounds(self._base.single_action_space)
        robot = robot_of(self._base)
        if len(self.bounds.sizes) > 1:
            raise NnitError(f"{task} has several robots; simulate it with physx_cpu.")
        self.info = TaskInfo(task, control_mode, obs_dim, self.bounds.act_dim, steps, robot)

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        """As `BatchEnv.reset`.

        Raises:
            NnitError: a start state of the task cannot be restored from its simulation state.
        """
        index = torch.as_tensor(list(at), device=self.device)
        if self._starts is None:
            obs, _ = self._base.reset(seed=int(seeds[0]), options={"env_idx": index})
            return obs[index]
        starts = self._starts(seeds)
        states = _stack([start.state for start in starts], self.device)
        options = {"env_idx": index, "reset_to_env_states": {"env_states": states}}
        obs, _ = self._base.reset(options=options)
        restored = obs[index]
        expected = torch.from_numpy(np.stack([start.obs for start in starts])).to(self.device)
        if (restored - expected).abs().max() > RESTORED_WITHIN:
            raise NnitError(
                f"a start state of {self.info.name} is more than its simulation state, so it "
                "cannot be restored on the GPU. Simulate with physx_cpu."
            )
        return restored

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `BatchEnv.step`."""
        obs, rewards, _, _, info = self._base.step(self.bounds.tensor_from_normalized(actions))
        return obs, rewards, info["success"].bool()

    def close(self) -> None:
        """Release the simulator."""
        self._base.close()


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """Nested dicts with `function` applied to their leaves."""
    if isinstance(tree, dict):
        return {key: _each(function, value) for key, value in tree.items()}
    return function(tree)


def _stack(states: list[Any], device: torch.device) -> Any:
    """States of N single environments as the state of a batch, tensors [N, D] on `device`."""
    if isinstance(states[0], dict):
        return {key: _stack([state[key] for state in states], device) for key in states[0]}
    return torch.from_numpy(np.stack(states)).to(device)
