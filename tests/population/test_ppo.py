"""RLlib's PPO on rollouts of arrays: the simulator's steps, and RLlib's own mathematics."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from support.networks import TASK

from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Topology
from nnit_dist.envs.batch_env import GpuEnv
from nnit_dist.envs.sim import SimEnv
from nnit_dist.population.config import Recipe, TrialSpec
from nnit_dist.population.learner import Samples, ppo_losses, samples_of
from nnit_dist.population.ppo import ppo_config
from nnit_dist.population.runner import Rollout, RolloutRunner

MODE = "pd_joint_delta_pos"
RECIPE = Recipe(envs=2, batch=240, minibatch=60, epochs=2)
pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def algo():
    algorithm = ppo_config(RECIPE, TrialSpec(TASK, MODE, (16, 8), 3)).build_algo()
    yield algorithm
    algorithm.stop()


@pytest.fixture(scope="module")
def rollout(algo) -> Rollout:
    return algo.env_runner.sample()[0]


@pytest.fixture(scope="module")
def module(algo):
    return algo.env_runner.module


def test_a_rollout_is_what_the_simulator_does_from_its_start_seeds(rollout):
    """Bit for bit, over three episodes, the last one unfinished."""
    assert rollout.obs.shape == (120, 2, 35)
    assert rollout.env_steps() == len(rollout) == 240
    assert rollout.ended.nonzero().flatten().tolist() == [49, 99]
    rng, env = np.random.default_rng(3), SimEnv(TASK)
    for start in (0, 50, 100):
        seeds = rng.integers(2**30, size=2).tolist()
        for number, seed in enumerate(seeds):
            obs, _ = env.reset(seed=seed)
            for t in range(start, min(start + 50, 120)):
                assert np.array_equal(rollout.obs[t, number], obs)
                obs, reward, _, truncated, _ = env.step(
                    rollout.actions[t, number].clamp(-1, 1).numpy()
                )
                assert np.array_equal(rollout.next_obs[t, number], obs)
                assert rollout.rewards[t, number] == np.float32(reward)
                assert truncated == rollout.ended[t]
    env.close()


def test_log_densities_are_those_of_rllibs_distribution(rollout, module):
    inputs = module.forward_exploration({Columns.OBS: rollout.obs})[Columns.ACTION_DIST_INPUTS]
    known = module.get_exploration_action_dist_cls().from_logits(inputs)
    assert torch.allclose(known.logp(rollout.actions), rollout.logp, atol=1e-4)
    assert rollout.actions.std() > 0.4


def test_what_follows_is_that_of_the_returned_return(algo, rollout):
    finished = rollout.rewards[:100].reshape(2, 50, 2).sum(1).flatten()
    measured = algo.env_runner.get_metrics()
    assert float(measured["episode_return_mean"]) == pytest.approx(float(finished.mean()), rel=1e-5)
    assert int(measured["num_env_steps_sampled"]) == 240


def test_advantages_are_rllibs(rollout, module):
    found = samples_of(module, rollout, gamma=0.8, gae_lambda=0.9, device="cpu")
    advantages = found.advantages.unflatten(0, (120, 2))
    bounds = [0, 50, 100, 120]
    for number in range(2):
        for start, stop in itertools.pairwise(bounds):
            own, last = rollout.obs[start:stop, number], rollout.next_obs[stop - 1, number]
            obs = torch.cat([own, last[None]])
            values = module.compute_values({Columns.OBS: obs}).detach().numpy()
            rewards = np.append(rollout.rewards[start:stop, number].numpy(), 0.0)
            cut = np.zeros(len(values))
            cut[-2] = 1
            none = np.zeros(len(values))
            targets = compute_value_targets(values, rewards, none, cut, 0.8, 0.9)
            expected = (targets - values)[:-1]
            assert np.allclose(advantages[start:stop, number], expected, atol=1e-4)


def test_the_loss_is_rllibs(algo, rollout, module):
    learner = algo.learner_group._learner
    own = learner.module[DEFAULT_MODULE_ID].unwrapped()
    samples = samples_of(module, rollout, gamma=0.8, gae_lambda=0.9, device="cpu")
    samples.logp = samples.logp + 0.4 * torch.randn(240)  # some ratios beyond the clip
    policy, value, _ = ppo_losses(own, samples, 0.2)
    batch = {
        Columns.OBS: samples.obs,
        Columns.ACTIONS: samples.actions,
        Columns.ACTION_LOGP: samples.logp,
        Columns.ACTION_DIST_INPUTS: own.forward_train({Columns.OBS: samples.obs})[
            Columns.ACTION_DIST_INPUTS
        ].detach(),
        Postprocessing.ADVANTAGES: samples.advantages,
        Postprocessing.VALUE_TARGETS: samples.targets,
    }
    expected = PPOTorchLearner.compute_loss_for_module(
        learner,
        module_id=DEFAULT_MODULE_ID,
        config=learner.config,
        batch=batch,
        fwd_out=own.forward_train(batch),
    )
    entropy = own.log_std.sum() + 4 * math.log(2 * math.pi * math.e)
    loss = policy + 0.5 * value - RECIPE.entropy_coeff * entropy
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_observations_are_whitened_by_all_that_was_sampled(algo, rollout):
    """And a policy that takes raw ones acts as the actor does."""
    learner, seen = algo.learner_group._learner, []
    own = copy.deepcopy(learner.module[DEFAULT_MODULE_ID].unwrapped())
    for _ in range(2):
        seen.append(rollout.obs.flatten(0, 1) * (1 + len(seen)))
        own.normalizer.show(seen[-1].unflatten(0, (120, 2)))
    both = torch.cat(seen)
    assert torch.allclose(own.normalizer.mean, both.mean(0), atol=1e-5)
    assert torch.allclose(own.normalizer.var, both.var(0, correction=0), atol=1e-4)
    policy = Policy(Topology(35, (16, 8), 8), own.actor_layers(), TASK, "rllib")
    acts = own.forward_train({Columns.OBS: both})[Columns.ACTION_DIST_INPUTS].chunk(2, -1)[0]
    assert np.allclose(policy.forward(both.numpy()), acts.detach().numpy(), atol=1e-4)


def test_samples_are_picked_by_row(rollout, module):
    samples = samples_of(module, rollout, gamma=0.8, gae_lambda=0.9, device="cpu")
    some: Samples = samples[torch.tensor([3, 1])]
    assert torch.equal(some.obs, samples.obs[[3, 1]])
    assert torch.equal(some.targets, samples.targets[[3, 1]])


def test_a_step_of_training_fits_the_values_and_moves_the_rate(algo, rollout, module):
    samples = samples_of(module, rollout, gamma=0.8, gae_lambda=0.9, device="cpu")
    own = algo.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
    before = float(ppo_losses(own, samples, 0.2)[1])
    shown = float(own.normalizer.count)
    result = algo.train()
    assert float(own.normalizer.count) == shown + RECIPE.batch
    assert all(map(torch.equal, own.normalizer.buffers(), module.normalizer.buffers()))
    assert float(ppo_losses(own, samples, 0.2)[1]) < 0.9 * before
    assert all(map(torch.equal, own.actor.parameters(), module.actor.parameters()))
    assert result["num_env_steps_sampled_lifetime"] % 240 == 0
    assert 0 < float(algo.learner_group._learner.get_optimizer().param_groups[0]["lr"]) < RECIPE.lr


def test_there_is_no_further_epoch_once_the_policy_went_too_far():
    config = RECIPE.model_copy(update={"epochs": 5, "max_kl": 1e-9})
    algorithm = ppo_config(config, TrialSpec(TASK, MODE, (8,), 3)).build_algo()
    algorithm.train()
    optimizer = algorithm.learner_group._learner.get_optimizer()
    steps = {int(state["step"]) for state in optimizer.state.values()}
    algorithm.stop()
    assert steps == {RECIPE.batch // RECIPE.minibatch}


def test_a_batch_of_the_gpus_own_environment_is_sampled_as_well():
    """Its code on ManiSkill's CPU backend, which steps one environment."""
    one = RECIPE.model_copy(update={"envs": 1, "batch": 60})

    def make_env(count: int) -> GpuEnv:
        return GpuEnv(TASK, MODE, count, reward=True, starts=None, sim_backend="physx_cpu")

    runner = RolloutRunner(
        config=ppo_config(one, TrialSpec(TASK, MODE, (8,), 0), make_env=make_env)
    )
    (rollout,) = runner.sample()
    assert rollout.obs.shape == (60, 1, 35)
    assert rollout.ended.nonzero().flatten().tolist() == [49]
    assert torch.isfinite(rollout.obs).all()
    runner.stop()
