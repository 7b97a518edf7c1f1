"""Many networks at once, on CPU environments stacked behind the interface of a GPU's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import TASK, random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.topology import ACTIVATIONS
from nnit_dist.envs.batch_env import GpuEnv, StackedEnv, record_start
from nnit_dist.envs.sim import SimEnv
from nnit_dist.rollout.actors import BatchSimulator, Simulators
from nnit_dist.rollout.batched import RowPolicies, run_parts
from nnit_dist.rollout.episodes import Part, run_part
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Job

MODE = "pd_joint_delta_pos"


@settings(max_examples=30, deadline=None)
@given(
    hidden=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    data=st.data(),
)
def test_each_row_goes_through_its_own_network(hidden, data):
    names = [data.draw(st.sampled_from(ACTIVATIONS)) for _ in hidden]
    policies = [
        random_policy(h, seed, activation=name)
        for seed, (h, name) in enumerate(zip(hidden, names, strict=True))
    ]
    owners = data.draw(st.lists(st.integers(0, len(hidden) - 1), min_size=1, max_size=12))
    obs = np.random.default_rng(0).normal(size=(len(owners), 35)).astype(np.float32)
    actions = RowPolicies(policies, owners).act(torch.from_numpy(obs)).numpy()
    alone = [policies[owner].act(row) for owner, row in zip(owners, obs, strict=True)]
    assert np.allclose(actions, alone, atol=1e-5)


POLICIES = [
    random_policy((16, 8), 0, "p0"),
    random_policy((24,), 1, "p1", activation="relu"),
    random_policy((8, 8, 8), 2, "p2", activation="silu"),
]
PARTS = [
    Part(POLICIES[0], (1, 2)),
    Part(POLICIES[1], (3,), record=True),
    Part(POLICIES[2], (1, 5), noise=0.2),
    Part(POLICIES[0], (4,), noise=0.1, record=True),
]


def assert_alike(found, expected):
    """Networks in a batch round otherwise than alone, and contacts let the last bits grow."""
    for one, other in zip(found, expected, strict=True):
        assert one.seeds == other.seeds
        assert np.array_equal(one.success_once, other.success_once)
        assert np.array_equal(one.success_at_end, other.success_at_end)
        assert np.allclose(one.returns, other.returns, rtol=0.02)
        assert (one.observations is None) == (other.observations is None)
        if one.observations is not None and other.observations is not None:
            assert one.observations.shape == other.observations.shape
            assert np.allclose(one.observations[:, :10], other.observations[:, :10], atol=1e-4)
            assert np.array_equal(one.observations[:, 0], other.observations[:, 0])


@pytest.fixture(scope="module")
def alone():
    env = SimEnv(TASK)
    results = [run_part(env, part) for part in PARTS]
    env.close()
    return results


@pytest.mark.parametrize("num_envs", [2, 4, 8])
def test_networks_together_do_what_each_does_alone(alone, num_envs):
    """Waves of two, of four with a part cut in two, and one that is not full."""
    env = StackedEnv(TASK, MODE, num_envs, reward=True)
    assert_alike(run_parts(env, PARTS, rewarded=True), alone)
    env.close()


def test_without_rewards_there_are_no_returns():
    env = StackedEnv(TASK, MODE, 2, reward=False)
    (found,) = run_parts(env, PARTS[:1], rewarded=False)
    assert np.isnan(found.returns).all()
    env.close()


@pytest.mark.parametrize("task", ["PushCube-v1", "PickCube-v1", "StackCube-v1", "RollBall-v1"])
def test_start_states_are_carried_from_the_cpu_simulator(task):
    """The GPU's code on the CPU backend: same start states, and nearly the same episodes."""
    source = SimEnv(task)
    starts = lambda seeds: [record_start(source, seed) for seed in seeds]  # noqa: E731
    env = GpuEnv(task, MODE, 1, reward=True, starts=starts, sim_backend="physx_cpu")
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 8)).astype(np.float32)
    for seed in (3, 4, 3):
        restored = env.reset([seed], [0])[0].numpy()
        obs, _ = source.reset(seed=seed)
        assert np.allclose(restored, obs, atol=1e-5)
        for action in actions:
            obs, reward, _, _, info = source.step(action)
            ours = env.step(torch.from_numpy(action[None]))
            assert np.allclose(ours[0][0].numpy(), obs, atol=1e-2)
            assert ours[1].item() == pytest.approx(reward, abs=1e-2)
            assert ours[2].item() == info["success"]
    source.close()
    env.close()


def test_without_carried_start_states_a_seed_still_names_its_own():
    env = GpuEnv(TASK, MODE, 1, reward=True, starts=None, sim_backend="physx_cpu")
    first, other, again = (env.reset([seed], [0]).clone() for seed in (3, 4, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    env.close()


def test_a_start_state_that_cannot_be_carried_is_refused():
    source, other = SimEnv(TASK), SimEnv(TASK)

    def starts(seeds):
        """States of other seeds than the observations'."""
        pairs = [(record_start(source, s), record_start(other, s + 1)) for s in seeds]
        return [replace(start, state=wrong.state) for start, wrong in pairs]

    env = GpuEnv(TASK, MODE, 1, reward=True, starts=starts, sim_backend="physx_cpu")
    with pytest.raises(NnitError, match="more than its simulation state"):
        env.reset([3], [0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_is_missed_by_name():
    with pytest.raises(NnitError, match="physx_cuda needs a CUDA GPU"):
        GpuEnv(TASK, MODE, 4, reward=True, starts=lambda seeds: [])


class StackedSimulators(Simulators):
    """The pool's batch actors, on stacked CPU environments."""

    def start(self):
        import ray

        actor = ray.remote(BatchSimulator).options(num_cpus=1)
        return actor.remote(
            self.task, self.control_mode, self.reward, self.width, sim_backend="physx_cpu"
        )


def test_the_pool_fills_batches_with_different_networks(ray_local, alone):
    jobs = [Job(p.policy, p.seeds, p.noise, p.record) for p in PARTS]
    with SimulatorPool(StackedSimulators(TASK, MODE, True, width=3), actors=1) as pool:
        found = list(pool.run(jobs))
        assert pool.calls <= 3
    seeds = sorted((job.policy.id, seed) for job, r in found for seed in r.seeds)
    assert seeds == sorted((p.policy.id, seed) for p in PARTS for seed in p.seeds)
    once = {(job.policy.id, job.noise, s): o for job, r in found
            for s, o in zip(r.seeds, r.success_once, strict=True)}  # fmt: skip
    for part, expected in zip(PARTS, alone, strict=True):
        for seed, flag in zip(part.seeds, expected.success_once, strict=True):
            assert once[part.policy.id, part.noise, seed] == flag
