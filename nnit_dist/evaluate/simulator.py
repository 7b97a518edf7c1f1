"""Simulators as Ray actors, and how a pool starts them."""

import socket
from dataclasses import dataclass
from typing import Any

import ray

from nnit_dist.errors import NnitError
from nnit_dist.evaluate.rollout import Part, Rollouts, run_part


@dataclass(frozen=True)
class Ready:
    """A simulator that has started: where, and how many episodes it runs at once."""

    node: str
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
        try:
            from nnit_dist.envs.sim import SimEnv

            self._env = SimEnv(*self._task)
        except NnitError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise NnitError(
                f"no simulator works on node {socket.gethostname()}: {reason[-1]} "
                "Run `nnit doctor` there."
            ) from error
        return Ready(socket.gethostname())

    def rollout(self, parts: list[Part]) -> list[Rollouts]:
        """Run every part's episodes; their policies are references to the object store."""
        return [run_part(self._env, part) for part in fetched(parts)]


def fetched(parts: list[Part]) -> list[Part]:
    """`parts` with their policies in place of references to them."""
    policies = ray.get([part.policy for part in parts])
    return [
        Part(policy, part.seeds, part.noise, part.record)
        for part, policy in zip(parts, policies, strict=True)
    ]


@dataclass(frozen=True)
class Simulators:
    """What a pool starts: simulators of one task on Ray.

    `reward` is for returns and costs a third of the speed.
    """

    task: str
    control_mode: str
    reward: bool = False

    def start(self) -> Any:
        """A new actor with `ready()` and `rollout(parts)`."""
        actor: Any = ray.remote(Simulator)
        return actor.options(num_cpus=1, max_restarts=0).remote(
            self.task, self.control_mode, self.reward
        )

    def stop(self, actor: Any) -> None:
        ray.kill(actor)

    def default_count(self) -> int:
        """One for every CPU of the cluster."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
