"""Simulators as Ray actors, and how a pool starts them."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import ray

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import SimBackend
from nnit_dist.rollout.episodes import Part, Rollouts, run_part
from nnit_dist.runtime.ray_session import AWAY_FROM_TRAINING, ROLE, TRAINING, may_grow


@dataclass(frozen=True)
class Ready:
    """Reply of a simulator that has started; `width` is how many episodes it runs at once."""

    width: int = 1


class Simulator:
    """One ManiSkill3 environment on one CPU core."""

    def __init__(self, task: str, control_mode: str, reward: bool) -> None:
        self._task = task, control_mode, reward
        self._env: Any = None

    def ready(self) -> Ready:
        """Build the environment.

        Raises:
            NnitError: no simulator works on this node.
        """
        with _named_node():
            from nnit_dist.envs.sim import SimEnv

            self._env = SimEnv(*self._task)
        return Ready()

    def rollout(self, parts: list[Part]) -> list[Rollouts]:
        """Run the episodes of every part; policies are references to the object store."""
        return [run_part(self._env, part) for part in fetched(parts)]


@contextmanager
def _named_node() -> Iterator[None]:
    """Name the node in the error if building a simulator fails."""
    try:
        yield
    except NnitError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NnitError(
            f"no simulator works on node {socket.gethostname()}: {reason[-1]} "
            "Run `nnit doctor` there."
        ) from error


def fetched(parts: list[Part]) -> list[Part]:
    """Return `parts` with each policy fetched from the object store."""
    policies = ray.get([part.policy for part in parts])
    return [
        Part(policy, part.seeds, part.noise, part.record)
        for part, policy in zip(parts, policies, strict=True)
    ]


class BatchSimulator:
    """One ManiSkill3 simulation of many environments, each with its own network.

    With `physx_cuda` it runs on a GPU and gets start states from a CPU simulator. With
    `physx_cpu` it stacks CPU environments in this process, which is meant for tests.
    """

    def __init__(
        self, task: str, control_mode: str, reward: bool, num_envs: int, *, sim_backend: str
    ) -> None:
        self._task, self._num_envs, self._backend = (task, control_mode), num_envs, sim_backend
        self._reward = reward
        self._env: Any = None
        self._starter: Any = None
        self._known: dict[int, Any] = {}

    def ready(self) -> Ready:
        """Build the environments.

        Raises:
            NnitError: no such simulator works on this node.
        """
        from nnit_dist.envs.batch_env import GpuEnv, StackedEnv

        with _named_node():
            if self._backend == "physx_cpu":
                self._env = StackedEnv(*self._task, self._num_envs, reward=self._reward)
            else:
                self._starter = ray.remote(StartStates).options(num_cpus=0).remote(*self._task)
                self._env = GpuEnv(
                    *self._task, self._num_envs, reward=self._reward, starts=self._starts
                )
        return Ready(self._num_envs)

    def rollout(self, parts: list[Part]) -> list[Rollouts]:
        """Run every part's episodes, as many at once as there are environments."""
        from nnit_dist.rollout.batched import run_parts

        return run_parts(self._env, fetched(parts), self._reward)

    def _starts(self, seeds: Sequence[int]) -> list[Any]:
        unknown = [seed for seed in seeds if seed not in self._known]
        self._known |= zip(unknown, ray.get(self._starter.record.remote(unknown)), strict=True)
        return [self._known[seed] for seed in seeds]


class StartStates:
    """A CPU simulator in its own process that records start states for a GPU simulator."""

    def __init__(self, task: str, control_mode: str) -> None:
        from nnit_dist.envs.sim import SimEnv

        self._env = SimEnv(task, control_mode, reward=False)

    def record(self, seeds: list[int]) -> list[Any]:
        """The start state of each seed."""
        from nnit_dist.envs.batch_env import record_start

        return [record_start(self._env, seed) for seed in seeds]


@dataclass(frozen=True)
class Simulators:
    """Simulators of one task, which a pool starts as Ray actors.

    Args:
        reward: measure returns, which takes a third longer (PushCube-v1).
        sim_backend: `physx_cpu` runs one environment per CPU core, `physx_cuda` runs `width`
            environments per GPU. `auto` is `physx_cuda` if a node that does not train has a GPU.
        width: environments per GPU.
    """

    task: str
    control_mode: str
    reward: bool = False
    sim_backend: SimBackend = "auto"
    width: int = 1024

    def start(self) -> Any:
        """Start a new actor with `ready()` and `rollout(parts)`."""
        common = self.task, self.control_mode, self.reward
        if self.on_gpu:
            gpu: Any = ray.remote(BatchSimulator).options(num_gpus=1, max_restarts=0)
            return gpu.remote(*common, self.width, sim_backend="physx_cuda")
        cpu: Any = ray.remote(Simulator).options(
            num_cpus=1, max_restarts=0, label_selector=AWAY_FROM_TRAINING
        )
        return cpu.remote(*common)

    def stop(self, actor: Any) -> None:
        """Kill the actor."""
        ray.kill(actor)

    def room(self) -> int:
        """Number of simulators that the present nodes have room for: one per GPU or CPU core.

        Nodes that train are counted only with `physx_cuda`.
        """
        nodes = _nodes(training=self.sim_backend == "physx_cuda")
        return int(sum(node["Resources"].get("GPU" if self.on_gpu else "CPU", 0) for node in nodes))

    def check(self) -> None:
        """Raise NnitError if no node has a GPU that the simulators need, and none can come."""
        if self.sim_backend == "physx_cuda" and not self.room() and not may_grow():
            raise NnitError("physx_cuda needs a GPU, and Ray has none here; choose physx_cpu.")

    @cached_property
    def on_gpu(self) -> bool:
        """Whether each simulator takes a GPU; decided once, before further nodes join."""
        if self.sim_backend == "auto":
            return any(node["Resources"].get("GPU", 0) >= 1 for node in _nodes(training=False))
        return self.sim_backend == "physx_cuda"


class _Node(TypedDict):
    """The fields of a node in `ray.nodes()` that are used here."""

    Alive: bool
    Resources: dict[str, float]
    Labels: dict[str, str]


def _nodes(training: bool) -> list[_Node]:
    """Live nodes of the cluster, with or without the nodes that train."""
    nodes: list[_Node] = ray.nodes()
    alive = [node for node in nodes if node["Alive"]]
    return [node for node in alive if training or node["Labels"].get(ROLE) != TRAINING]
