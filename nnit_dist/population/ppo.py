"""RLlib's configuration of PPO for a recipe of the population (new API stack)."""

from collections.abc import Callable
from functools import partial

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.population.config import Recipe, TrialSpec
from nnit_dist.population.learner import RolloutLearner
from nnit_dist.population.module import ActorCriticModule
from nnit_dist.population.runner import RolloutRunner


def ppo_config(
    recipe: Recipe,
    spec: TrialSpec,
    *,
    make_env: Callable[[int], BatchEnv] | None = None,
    gpu: bool = False,
) -> PPOConfig:
    """RLlib's configuration of a trial, which samples and learns in a single process.

    So no core waits for a slower runner, and as many trials as cores keep a machine busy.

    Args:
        make_env: makes the given number of environments; by default ManiSkill's on the CPU, or with
            `gpu` on the GPU.
        gpu: whether to sample and learn on a GPU.
    """
    make_env = make_env or partial(_on_gpu if gpu else _stacked, spec.task, spec.control_mode)
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
                module_class=ActorCriticModule,
                model_config={"hidden": list(spec.hidden), "activation": spec.activation},
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
            learner_config_dict=recipe.model_dump(include={"normalize_observations", "max_kl"}),
        )
        .debugging(seed=spec.seed, log_level="ERROR")
    )


def _on_gpu(task: str, control_mode: str, num_envs: int) -> BatchEnv:
    from nnit_dist.envs.batch_env import GpuEnv

    return GpuEnv(task, control_mode, num_envs, reward=True, starts=None)


def _stacked(task: str, control_mode: str, num_envs: int) -> BatchEnv:
    from nnit_dist.envs.batch_env import StackedEnv

    return StackedEnv(task, control_mode, num_envs, reward=True)
