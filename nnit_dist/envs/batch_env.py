"""Many environments of one task, stepped together: on a GPU, or stacked on one CPU core.

`GpuEnv` is ManiSkill's GPU simulation. A GPU episode cannot start from a seed of its own:
ManiSkill draws all start states of a batch from the first environment's seed. So start
states are taken from the CPU simulator, which makes a start seed mean the same start state
on either.

`StackedEnv` holds as many CPU environments and does the same with plain loops: a stand-in that
gives everything above it real physics to be tested on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import TaskInfo
from nnit_dist.envs.sim import SimEnv, make_maniskill
from nnit_dist.envs.tasks import check_task

# How far an observation of a restored start state may be from that of the original, in the
# units of the observation (m, rad, m/s): rounding, but no other start state.
RESTORED_WITHIN = 1e-3


class BatchEnv(Protocol):
    """N environments of one task. Tensors lie on `device`, float32."""

    info: TaskInfo
    num_envs: int
    device: torch.device

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        """Start the episodes of `seeds` in the environments `at`; their observations
        [len(at), obs_dim]. The others go on where they were."""

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions [N, act_dim]: observations [N, obs_dim], rewards [N] and success [N]."""

    def close(self) -> None: ...


class StackedEnv:
    """CPU environments behind the interface of a batch, one after the other."""

    def __init__(self, task: str, control_mode: str, num_envs: int, reward: bool) -> None:
        self._envs = [SimEnv(task, control_mode, reward) for _ in range(num_envs)]
        self.info, self.num_envs = self._envs[0].info, num_envs
        self.device = torch.device("cpu")

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        pairs = zip(seeds, at, strict=True)
        return torch.from_numpy(np.stack([self._envs[i].reset(seed=seed)[0] for seed, i in pairs]))

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        results = [
            env.step(action) for env, action in zip(self._envs, actions.numpy(), strict=True)
        ]
        obs, reward, _, _, info = zip(*results, strict=True)
        success = torch.tensor([one["success"] for one in info])
        return torch.from_numpy(np.stack(obs)), torch.tensor(reward), success

    def close(self) -> None:
        for env in self._envs:
            env.close()


@dataclass(frozen=True)
class Start:
    """The start of one episode: the simulation's state (nested dicts of [D]), and what is seen."""

    state: dict[str, Any]
    obs: np.ndarray


def record_start(env: SimEnv, seed: int) -> Start:
    """The start state of a seed, from the CPU simulator."""
    obs, _ = env.reset(seed=seed)
    return Start(_each(lambda value: value[0].numpy().copy(), env.state()), obs)


class GpuEnv:
    """ManiSkill's GPU simulation of one task.

    Args:
        starts: gives the CPU simulator's start states of some seeds (`record_start`), from a
            process of its own: one that simulates on the GPU cannot rely on the CPU's. Without
            it, ManiSkill draws them all from the first seed, as suits training.
        sim_backend: `physx_cuda`; `physx_cpu` with one environment does the same on a CPU.

    Raises:
        NnitError: there is no GPU to simulate on.
    """

    def __init__(
        self,
        task: str,
        control_mode: str,
        num_envs: int,
        reward: bool,
        starts: Callable[[Sequence[int]], list[Start]] | None,
        sim_backend: str = "physx_cuda",
    ) -> None:
        steps = check_task(task)
        if sim_backend == "physx_cuda" and not torch.cuda.is_available():
            raise NnitError("physx_cuda needs a CUDA GPU; simulate with physx_cpu here.")
        self._base = make_maniskill(task, control_mode, reward, sim_backend, num_envs)
        self._starts, self.num_envs = starts, num_envs
        self.device = torch.device(self._base.device)
        obs_dim = self._base.single_observation_space.shape[0]
        act_dim = self._base.single_action_space.shape[0]
        self.info = TaskInfo(task, control_mode, obs_dim, act_dim, steps)

    def reset(self, seeds: Sequence[int], at: Sequence[int]) -> torch.Tensor:
        index = torch.as_tensor(list(at), device=self.device)
        if self._starts is None:
            obs, _ = self._base.reset(seed=int(seeds[0]), options={"env_idx": index})
            return obs[index]
        starts = self._starts(seeds)
        states = _stack([start.state for start in starts], self.device)
        options = {"env_idx": index, "reset_to_env_states": {"env_states": states}}
        obs, _ = self._base.reset(options=options)
        seen = obs[index]
        expected = torch.from_numpy(np.stack([start.obs for start in starts])).to(self.device)
        if (seen - expected).abs().max() > RESTORED_WITHIN:
            raise NnitError(
                f"a start state of {self.info.name} is more than its simulation state, so it "
                "cannot be carried to the GPU. Simulate with physx_cpu."
            )
        return seen

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        obs, reward, _, _, info = self._base.step(actions)
        return obs, reward, info["success"].bool()

    def close(self) -> None:
        self._base.close()


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree`, nested dicts, with `function` applied to its leaves."""
    if isinstance(tree, dict):
        return {key: _each(function, value) for key, value in tree.items()}
    return function(tree)


def _stack(states: list[Any], device: torch.device) -> Any:
    """States of single environments as one of a batch, [N, D]."""
    if isinstance(states[0], dict):
        return {key: _stack([state[key] for state in states], device) for key in states[0]}
    return torch.from_numpy(np.stack(states)).to(device)
