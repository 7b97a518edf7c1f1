"""One member of the population: an RLlib PPO run that stops when its policy is good enough.

Runs as a Ray Tune trial. Everything it needs to go on after a crash lies in its own
directory, so a retry by Tune and a new `nnit population` continue in the same way.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.debug import update_global_seed_if_necessary

from nnit_dist.artifacts.run_directory import PopulationDirectory
from nnit_dist.core.files import read_json, write_json
from nnit_dist.core.policy import Policy
from nnit_dist.core.storage import path_of, remove
from nnit_dist.core.topology import Activation, Topology
from nnit_dist.core.zoo import Member
from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED, SimEnv
from nnit_dist.population.config import Recipe, TrialSpec
from nnit_dist.population.module import ActorCriticModule
from nnit_dist.population.ppo import ppo_config
from nnit_dist.rollout.actors import Simulator
from nnit_dist.rollout.episodes import Part, Rollouts, run_part

SnapshotResult = TypedDict(
    "SnapshotResult", {"env_steps": int, "success_once": float, "return": float}
)
SnapshotResult.__doc__ = """What a snapshot was measured at: its env steps, success and return."""

TrialReport = TypedDict("TrialReport", {"env_steps": int, "success": float, "return": float})
TrialReport.__doc__ = """What a trial tells Tune after an iteration: its env steps, the success of
its last snapshot, and the mean return of its rollouts."""


class _SpecFields(TypedDict):
    task: str
    control_mode: str
    hidden: list[int]
    seed: int
    activation: Activation


class _TrialFields(TypedDict):
    spec: _SpecFields
    recipe: dict[str, object]


class _TrialConfig(TypedDict):
    """What Tune gives a trial: fields of its `TrialSpec` and `Recipe`, and where it works."""

    trial: _TrialFields
    out: str
    gpu: bool


@dataclass
class Progress:
    """How far a trial is, in how many seconds. `history` holds one entry per measured snapshot."""

    env_steps: int
    success_once: float
    done: bool
    checkpoint: str
    history: list[SnapshotResult]
    seconds: float = 0.0


def read_progress(path: Path) -> Progress | None:
    """A trial's progress file; None before its first snapshot."""
    return Progress(**read_json(path)) if path.exists() else None


def train_trial(config: _TrialConfig) -> None:
    """Ray Tune function trainable: train until the success bar or the end of the budget."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    fields = config["trial"]["spec"]
    hidden, activation = tuple(fields["hidden"]), fields["activation"]
    spec = TrialSpec(fields["task"], fields["control_mode"], hidden, fields["seed"], activation)
    recipe = Recipe.model_validate(config["trial"]["recipe"])
    trial = Trial(spec, recipe, PopulationDirectory(path_of(config["out"])), config["gpu"])
    try:
        while not trial.progress.done:
            tune.report({**trial.step(), "trial": spec.id})
    finally:
        trial.close()  # the process goes on with another trial


class Trial:
    """Trains, measures and checkpoints one member; with `gpu`, simulates and learns there.

    It is measured on the CPU's simulator all the same, and then in a process beside this one: one
    that simulates on a GPU cannot rely on the CPU's.
    """

    def __init__(
        self,
        spec: TrialSpec,
        recipe: Recipe,
        out: PopulationDirectory,
        gpu: bool = False,
        *,
        make_env: Callable[[int], BatchEnv] | None = None,
    ) -> None:
        self.spec, self.recipe = spec, recipe
        self.zoo, self.directory = out.zoo, out.trial(spec.id)
        self.progress_file = out.progress(spec.id)
        task = spec.task, spec.control_mode
        self.evaluator = RemoteEvaluator(*task) if gpu or make_env else LocalEvaluator(*task)
        self.algo = ppo_config(recipe, spec, make_env=make_env, gpu=gpu).build_algo()
        self.progress = read_progress(self.progress_file) or Progress(0, 0.0, False, "", [])
        if self.progress.checkpoint:
            self.algo.restore_from_path(str(self.directory.absolute() / self.progress.checkpoint))
        self.iterations = self.progress.env_steps // recipe.batch
        self._since = time.monotonic()
        self._reseed()

    def step(self) -> TrialReport:
        """One PPO iteration; every `eval_every` env steps also a measured, saved snapshot."""
        result = self.algo.train()
        self.iterations += 1
        env_steps = self.iterations * self.recipe.batch
        if env_steps - self.progress.env_steps >= self.recipe.eval_every:
            self._snapshot(env_steps)
        return {
            "env_steps": env_steps,
            "success": self.progress.success_once,
            "return": result["env_runners"].get("episode_return_mean", 0.0),
        }

    def close(self) -> None:
        """End its processes."""
        self.algo.stop()
        self.evaluator.close()

    def _snapshot(self, env_steps: int) -> None:
        member = self._measure(env_steps)
        self.zoo.append([member])
        name = f"checkpoint-{env_steps:09d}"
        self.algo.save_to_path(str((self.directory / name).absolute()))
        entry: SnapshotResult = {
            "env_steps": env_steps,
            "success_once": member.success_once,
            "return": member.mean_return,
        }
        previous = self.progress.checkpoint
        self.progress = Progress(
            env_steps,
            member.success_once,
            member.success_once >= self.recipe.success_bar or env_steps >= self.recipe.env_steps,
            name,
            [*self.progress.history, entry],
            self.progress.seconds + time.monotonic() - self._since,
        )
        self._since = time.monotonic()
        # The old checkpoint goes only once the progress file names the new one.
        write_json(self.progress_file, asdict(self.progress))
        if previous:
            remove(self.directory / previous)
        self._reseed()

    def _reseed(self) -> None:
        """Start afresh all that a checkpoint does not hold: random numbers and episodes.

        What follows a checkpoint so depends on the checkpoint alone, and a trial that is
        killed and goes on ends with the same policy as one that was not.
        """
        rng = np.random.default_rng((self.spec.seed, self.iterations))
        update_global_seed_if_necessary("torch", int(rng.integers(2**31)))
        runner: Any = self.algo.env_runner
        runner._seed = int(rng.integers(TRAIN_SEEDS - self.recipe.envs))
        runner._needs_initial_reset = True

    def _measure(self, env_steps: int) -> Member:
        spaces, module = self.algo.env_runner.get_spaces(), self.algo.get_module()
        assert isinstance(module, ActorCriticModule)
        obs_dim, act_dim = (space.shape[0] for space in spaces[DEFAULT_MODULE_ID])
        policy = Policy(
            Topology(obs_dim, self.spec.hidden, act_dim, self.spec.activation),
            module.actor_layers(),
            self.spec.task,
            "rllib",
            self.spec.control_mode,
            f"{self.spec.id}_{env_steps:09d}",
        )
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + self.recipe.eval_episodes)
        success = self.evaluator.run(Part(policy, tuple(seeds))).means()
        return Member(policy, self.spec.id, self.spec.seed, env_steps, *success)


class LocalEvaluator:
    """Runs episodes in this process."""

    def __init__(self, task: str, control_mode: str) -> None:
        self._env = SimEnv(task, control_mode)

    def run(self, part: Part) -> Rollouts:
        """Run the episodes of `part`."""
        return run_part(self._env, part)

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()


class RemoteEvaluator:
    """Runs episodes in a process of its own."""

    def __init__(self, task: str, control_mode: str) -> None:
        actor: Any = ray.remote(Simulator).options(num_cpus=0)
        self._simulator = actor.remote(task, control_mode, True)
        ray.get(self._simulator.ready.remote())

    def run(self, part: Part) -> Rollouts:
        """Run the episodes of `part`."""
        part = replace(part, policy=ray.put(part.policy))
        return ray.get(self._simulator.rollout.remote([part]))[0]

    def close(self) -> None:
        """Release the simulator."""
        ray.kill(self._simulator)
