"""`nnit bench population`: PPO's env steps per second, compared with the bare ManiSkill loop.

Four programs take turns, each on every core at once: the bare loop with random actions, our
environment in the same loop, PPO with RLlib's own env runner and learner, and PPO with ours. On
request, it also measures the success that each PPO reaches in the same number of env steps.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import ray
import torch

from nnit_dist.bench.bare import bare_env, run_episode
from nnit_dist.core.formatting import count
from nnit_dist.core.policy import Policy
from nnit_dist.core.task import DEFAULT_CONTROL_MODE
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.envs.sim import VALIDATION_SEED, SimEnv
from nnit_dist.population.config import Recipe, TrialSpec
from nnit_dist.population.module import ActorCriticModule
from nnit_dist.population.ppo import ppo_config
from nnit_dist.rollout.episodes import mean_success

Kind = Literal["bare", "ours", "rllib", "trial"]
ABOUT: dict[Kind, str] = {
    "bare": "bare ManiSkill loop, dense reward",
    "ours": "our environment in the same loop",
    "rllib": "PPO, RLlib's own env runner and learner",
    "trial": "PPO, ours",
}
HIDDEN: Hidden = (64, 64)
REPEATS = 3
EPISODES = 100  # validation episodes that measure the success of PPO


class Meter:
    """Runs one of the programs in `ABOUT`, in a process of its own."""

    def __init__(self, kind: Kind, task: str, recipe: Recipe, seed: int) -> None:
        torch.set_num_threads(1)
        self.kind, self.task, self.recipe, self.seed = kind, task, recipe, seed
        self.rng, self.done = np.random.default_rng(seed), 0
        if kind == "bare":
            self.env = bare_env(task)
        elif kind == "ours":
            self.env = SimEnv(task)
        else:
            make = _stock if kind == "rllib" else ppo_config
            spec = TrialSpec(task, DEFAULT_CONTROL_MODE, HIDDEN, seed)
            self.algo: Any = make(recipe, spec).build_algo()
        self._work(0)

    def rate(self, seconds: float) -> float:
        """Work for `seconds`; returns the env steps per second."""
        started = time.perf_counter()
        steps = self._work(seconds)
        return steps / (time.perf_counter() - started)

    def learn(self) -> float:
        """Train for the recipe's env steps; returns the deterministic success on validation."""
        while self.done < self.recipe.env_steps:
            self._work(0)
        module = self.algo.get_module()
        assert isinstance(module, ActorCriticModule)
        env = SimEnv(self.task)
        topology = Topology(env.info.obs_dim, HIDDEN, env.info.act_dim)
        policy = Policy(topology, module.actor_layers(), self.task, "rllib")
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + EPISODES)
        success, _, _ = mean_success(env, policy, seeds)
        env.close()
        return success

    def _work(self, seconds: float) -> int:
        """Work for `seconds`, but at least one iteration or episode; returns the env steps."""
        deadline, steps = time.perf_counter() + seconds, 0
        while steps == 0 or time.perf_counter() < deadline:
            if self.kind in ("rllib", "trial"):
                self.algo.train()
                steps += self.recipe.batch
            else:
                seed = int(self.rng.integers(2**30))
                steps += run_episode(self.env, self._random_action, seed)
        self.done += steps
        return steps

    def _random_action(self, obs: Any) -> np.ndarray:
        return self.rng.uniform(-1, 1, self.env.action_space.shape).astype(np.float32)


def bench_population(task: str, seconds: float, cores: int, recipe: Recipe) -> dict[Kind, float]:
    """Env steps per second of every program on all cores together: medians of several turns."""
    meters = {kind: [start_meter(kind, task, recipe, i) for i in range(cores)] for kind in ABOUT}
    rates: dict[Kind, list[float]] = {kind: [] for kind in ABOUT}
    for _ in range(REPEATS):
        for kind, actors in meters.items():
            turns = [meter.rate.remote(seconds / REPEATS) for meter in actors]
            rates[kind].append(sum(ray.get(turns)))
    for actors in meters.values():
        for meter in actors:
            ray.kill(meter)
    return {kind: float(np.median(turns)) for kind, turns in rates.items()}


def bench_curves(task: str, recipe: Recipe, seeds: int) -> dict[Kind, list[float]]:
    """Success after the recipe's env steps by seed, with RLlib's own parts and with ours."""
    kinds: tuple[Kind, ...] = ("rllib", "trial")
    curves: dict[Kind, list[float]] = {}
    for kind in kinds:
        meters = [start_meter(kind, task, recipe, seed) for seed in range(seeds)]
        curves[kind] = ray.get([meter.learn.remote() for meter in meters])
        for meter in meters:
            ray.kill(meter)
    return curves


def lines(task: str, seconds: float, cores: int, *, env_steps: int, seeds: int) -> Iterator[str]:
    """Run all measurements; yields lines of results."""
    rates = bench_population(task, seconds, cores, Recipe())
    yield f"{task}, {cores} processes on {cores} cores, env steps/s:"
    for kind, rate in rates.items():
        yield f"  {ABOUT[kind]}: {count(rate)}, {rate / rates['bare']:.2f} of the bare loop"
    yield f"  ours is {rates['trial'] / rates['rllib']:.2f} times RLlib's own"
    if seeds:
        yield (
            f"success after {count(env_steps)} env steps, {seeds} seeds, {EPISODES} episodes each:"
        )
        # RLlib's own learner neither normalizes observations nor stops an update at a KL limit.
        recipe = Recipe(env_steps=env_steps, normalize_observations=False, max_kl=math.inf)
        for kind, successes in bench_curves(task, recipe, seeds).items():
            each = ", ".join(f"{success:.2f}" for success in successes)
            yield f"  {ABOUT[kind]}: mean {np.mean(successes):.3f} ({each})"


def start_meter(kind: Kind, task: str, recipe: Recipe, seed: int) -> Any:
    """Start a `Meter` in a process of its own; returns its actor handle."""
    return ray.remote(Meter).options(num_cpus=0).remote(kind, task, recipe, seed)


def _stock(recipe: Recipe, spec: TrialSpec) -> Any:
    """The same algorithm with RLlib's own env runner and learner, on gymnasium's vector env."""
    import gymnasium as gym
    from ray import tune
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    tune.register_env("stock", lambda config: SimEnv(spec.task, spec.control_mode))
    return (
        ppo_config(recipe, spec)
        .environment("stock", env_config={}, clip_actions=True, normalize_actions=False)
        .env_runners(
            env_runner_cls=SingleAgentEnvRunner, gym_env_vectorize_mode=gym.VectorizeMode.SYNC
        )
        .learners(learner_class=PPOTorchLearner)
    )
