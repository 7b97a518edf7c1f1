"""Pools, what they are to do, and policies that do harm."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
from support.networks import TASK, random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job

MODE = "pd_joint_delta_pos"


@dataclass
class FaultyPolicy(Policy):
    """Does `fault` in its first call, once if it is given a marker file, else every time.

    With `first_obs`, only in the episode that begins with it.
    """

    fault: str = "die"
    marker: str = ""
    first_obs: np.ndarray | None = None

    def act(self, obs: np.ndarray) -> np.ndarray:
        if self._is_due(obs):
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "raise":
                raise ArithmeticError("this policy cannot divide")
            if self.fault == "refuse":
                raise NnitError("this simulator refuses")
            time.sleep(600)
        return super().act(obs)

    def _is_due(self, obs: np.ndarray) -> bool:
        if self.first_obs is not None:
            return np.array_equal(obs, self.first_obs)
        if not self.marker:
            return True
        try:  # of two actors that come here at once, one makes the marker
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def faulty(policy_id: str, **kwargs) -> FaultyPolicy:
    base = random_policy(policy_id=policy_id)
    return FaultyPolicy(base.topology, base.layers, TASK, "nnit", id=policy_id, **kwargs)


def new_pool(actors=2, **kwargs) -> SimulatorPool:
    return SimulatorPool(Simulators(TASK, MODE, reward=True), actors, **kwargs)


def episodes_of(outcomes) -> dict[tuple[str, int], tuple]:
    """Every episode's figures; none may come twice."""
    found: dict[tuple[str, int], tuple] = {}
    for outcome in outcomes:
        assert not isinstance(outcome, Failure), outcome.reason
        job, r = outcome
        columns = (r.seeds, r.success_once, r.success_at_end, r.returns)
        for seed, *figures in zip(*columns, strict=True):
            assert (job.policy.id, seed) not in found, "an episode was counted twice"
            found[job.policy.id, seed] = tuple(figures)
    return found


def jobs(policies=None, episodes=4):
    policies = policies or [random_policy(seed=i, policy_id=f"p{i}") for i in range(4)]
    return [Job(p, tuple(range(10, 10 + episodes))) for p in policies]
