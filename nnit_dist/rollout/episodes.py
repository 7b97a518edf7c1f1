"""Episodes of one policy, and how their success is measured.

ManiSkill's protocol: the episode runs its full length; `success_once` is success
at any step, `success_at_end` success at the last one.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnit_dist.envs.sim import SimEnv
from nnit_dist.rollout.evaluable import FunctionPolicy

Act = Callable[[np.ndarray], np.ndarray]
Step = Callable[[np.ndarray], tuple[np.ndarray, float, bool, bool, dict[str, bool]]]


@dataclass(frozen=True)
class Part:
    """Episodes of one network, within one call of a simulator.

    `policy` is an `Evaluable`; in a call of a Ray actor it is a reference to the object store.
    """

    policy: Any
    seeds: tuple[int, ...]
    noise: float = 0.0
    record: bool = False


@dataclass(frozen=True)
class Rollouts:
    """Results of N episodes of one network, in the order of `seeds`.

    Attributes:
        success_once: bool [N], success at any step.
        success_at_end: bool [N], success at the last step.
        returns: float64 [N], sums of rewards; NaN from a simulator without rewards.
        observations: float32 [N, steps, obs_dim] that the policy acted on, if recorded.
        seconds: time that the simulator spent on these episodes.
    """

    seeds: tuple[int, ...]
    success_once: np.ndarray
    success_at_end: np.ndarray
    returns: np.ndarray
    observations: np.ndarray | None = None
    seconds: float = 0.0

    def means(self) -> tuple[float, float, float]:
        """Means of success_once, success_at_end and return."""
        columns = self.success_once, self.success_at_end, self.returns
        once, at_end, total = (float(np.mean(column)) for column in columns)
        return once, at_end, total


def run_part(env: SimEnv, part: Part) -> Rollouts:
    """Run the episodes of `part`, one after the other."""
    recorded: list[list[np.ndarray]] | None = [] if part.record else None
    results, started = [], time.perf_counter()
    for seed in part.seeds:
        seen: list[np.ndarray] | None = None if recorded is None else []
        results.append(_run_episode(env, part.policy, seed, noise=part.noise, seen=seen))
        if recorded is not None and seen is not None:
            recorded.append(seen)
    once, at_end, returns = zip(*results, strict=True)
    return Rollouts(
        part.seeds,
        np.array(once),
        np.array(at_end),
        np.array(returns) if env.rewarded else np.full(len(returns), np.nan),
        None if recorded is None else np.array(recorded),
        time.perf_counter() - started,
    )


def _run_episode(
    env: SimEnv, policy: Any, seed: int, *, noise: float, seen: list[np.ndarray] | None
) -> tuple[bool, bool, float]:
    """Run an episode; return success at any step, success at the last step, and the return.

    `noise` is the standard deviation of Gaussian noise added to every normalized action (drawn
    from `seed`). Visited observations are appended to `seen` when it is given.
    """
    rng = np.random.default_rng(seed) if noise else None
    act, step = episode_functions(env, policy, seed)
    obs, _ = env.reset(seed=seed)
    once, success, total, truncated = False, False, 0.0, False
    while not truncated:
        if seen is not None:
            seen.append(obs)
        action = act(obs)
        if rng is not None:
            noised = action + rng.normal(0.0, noise, action.shape)
            action = np.clip(noised, -1, 1).astype(np.float32)
        obs, reward, _, truncated, info = step(action)
        success = info["success"]
        once, total = once or success, total + reward
    return once, success, total


def episode_functions(env: SimEnv, policy: Any, seed: int) -> tuple[Act, Step]:
    """How a policy acts in the episode of a seed, and how the simulator takes its actions.

    A network's actions are normalized. A function's are in the control mode's own units, and are
    clipped to its bounds.
    """
    if not isinstance(policy, FunctionPolicy):
        return policy.act, env.step
    function, shape = policy.begin(seed), (env.info.act_dim,)

    def act(obs: np.ndarray) -> np.ndarray:
        action = function(obs)
        if action.shape != shape:
            raise ValueError(f"an action has shape {list(action.shape)}, expected {list(shape)}")
        return action if policy.normalized else env.bounds.clip(action)

    return act, env.step if policy.normalized else env.apply


def mean_success(env: SimEnv, policy: Any, seeds: Iterable[int]) -> tuple[float, float, float]:
    """Run episodes in this process; return mean success_once, success_at_end and return."""
    return run_part(env, Part(policy, tuple(seeds))).means()
