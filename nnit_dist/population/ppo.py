"""The PPO recipe of the population, as an RLlib algorithm (new API stack)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.population.learner import RolloutLearner
from nnit_dist.population.module import ActorCriticModule
from nnit_dist.population.runner import RolloutRunner
from nnit_dist.topology import Hidden


class Recipe(BaseModel):
    """PPO settings of one task; RLlib's defaults do not fit ManiSkill3."""

    model_config = ConfigDict(extra="forbid")

    env_steps: int = Field(400_000, gt=0, description="budget of one trial, in env steps")
    success_bar: float = Field(0.95, ge=0, le=1, description="deterministic success to stop at")
    lr: float = Field(7e-4, gt=0, description="learning rate at the start")
    final_lr: float = Field(1e-4, gt=0, description="reached linearly at the end of the budget")
    batch: int = Field(2048, gt=0, description="env steps an iteration")
    minibatch: int = Field(256, gt=0, description="env steps a step of gradient descent")
    epochs: int = Field(10, gt=0, description="how often a batch is gone through")
    gamma: float = Field(0.8, ge=0, le=1, description="discount of a step")
    gae_lambda: float = Field(0.9, ge=0, le=1, description="of generalised advantage estimation")
    clip: float = Field(0.2, gt=0, description="of the ratio of an action's probabilities")
    max_kl: float = Field(0.04, gt=0, description="of an iteration: beyond it, no further epoch")
    grad_clip: float = Field(0.5, gt=0, description="largest norm of a gradient")
    entropy_coeff: float = Field(0.006, ge=0, description="weight of the entropy in the loss")
    whiten: bool = Field(True, description="observations, by the mean and spread of all so far")
    envs: int = Field(16, gt=0, description="environments stepped by a trial's process")
    eval_every: int = Field(40_000, gt=0, description="env steps between measurements")
    eval_episodes: int = Field(50, gt=0, description="of each of them")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch % self.envs:
            raise ValueError(f"batch={self.batch} is no multiple of envs={self.envs}")
        if self.minibatch > self.batch:
            raise ValueError(f"minibatch={self.minibatch} is more than batch={self.batch}")
        return self


# What differs from the defaults, by task: lifting and picking take longer than pushing.
RECIPES: dict[str, dict[str, Any]] = {
    "LiftPegUpright-v1": {"env_steps": 1_000_000},
    "PickCube-v1": {"env_steps": 1_000_000},
}


def ppo_config(
    recipe: Recipe,
    hidden: Hidden,
    task: str,
    control_mode: str,
    seed: int,
    make_env: Callable[[int], BatchEnv] | None = None,
    gpu: bool = False,
) -> PPOConfig:
    """RLlib's configuration of one trial: sampling and learning share one process.

    With everything in the trial's own process, no core waits for the slowest runner, and
    as many trials as cores keep the whole machine busy.

    Args:
        make_env: makes N environments; by default N of the CPU's, or on a GPU its own.
        gpu: sample and learn on a GPU.
    """
    make_env = make_env or partial(_on_gpu if gpu else _stacked, task, control_mode)
    return (
        PPOConfig()
        .environment("nnit", env_config={"make_env": make_env})
        .env_runners(
            env_runner_cls=RolloutRunner,
            num_env_runners=0,
            num_envs_per_env_runner=recipe.envs,
            rollout_fragment_length="auto",
            batch_mode="truncate_episodes",
        )
        .learners(num_learners=0, num_gpus_per_learner=int(gpu), learner_class=RolloutLearner)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=ActorCriticModule, model_config={"hidden": list(hidden)}
            )
        )
        .training(
            lr=[[0, recipe.lr], [recipe.env_steps, recipe.final_lr]],
            train_batch_size_per_learner=recipe.batch,
            minibatch_size=recipe.minibatch,
            num_epochs=recipe.epochs,
            gamma=recipe.gamma,
            lambda_=recipe.gae_lambda,
            clip_param=recipe.clip,
            grad_clip=recipe.grad_clip,
            grad_clip_by="global_norm",
            use_kl_loss=False,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.5,
            entropy_coeff=recipe.entropy_coeff,
            learner_config_dict={"whiten": recipe.whiten, "max_kl": recipe.max_kl},
        )
        .debugging(seed=seed, log_level="ERROR")
    )


def _on_gpu(task: str, control_mode: str, num_envs: int) -> BatchEnv:
    from nnit_dist.envs.batch_env import GpuEnv

    return GpuEnv(task, control_mode, num_envs, reward=True, starts=None)


def _stacked(task: str, control_mode: str, num_envs: int) -> BatchEnv:
    from nnit_dist.envs.batch_env import StackedEnv

    return StackedEnv(task, control_mode, num_envs, reward=True)
