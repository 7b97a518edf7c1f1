"""Shared fixtures: one local Ray for the tests that need it, small policies, a small sampler."""

import os
from pathlib import Path

import numpy as np
import pytest

from nnit_dist.policy import Policy
from nnit_dist.topology import Topology

TASK = "PushCube-v1"
# Ray's workers unpickle policies that are defined in test modules.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)


def random_policy(hidden=(16, 8), seed=0, policy_id="p", obs_dim=35, act_dim=8) -> Policy:
    rng = np.random.default_rng(seed)
    topology = Topology(obs_dim, tuple(hidden), act_dim)
    layers = [
        (rng.normal(0, fan_in**-0.5, (out, fan_in)), rng.normal(0, 0.1, out))
        for out, fan_in in topology.shapes
    ]
    return Policy(topology, layers, TASK, "rllib", id=policy_id)


@pytest.fixture(scope="session")
def ray_local():
    from nnit_dist.ray_session import ray_session

    with ray_session(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def sampler():
    return small_sampler()


def small_sampler():
    """An untrained hypernetwork with two teachers: the real class, small."""
    import torch

    from nnit_dist.align.ghn import GHN, GHNConfig
    from nnit_dist.align.latents import TeacherLatents
    from nnit_dist.align.sampler import AlignedSampler, Teacher
    from nnit_dist.envs.tasks import TaskInfo
    from nnit_dist.normalization import InputNorm

    torch.manual_seed(0)
    config = GHNConfig(latent_dim=4, embed_dim=16, channels=[8, 8])
    rng = np.random.default_rng(0)
    norm = InputNorm(
        rng.normal(size=35).astype(np.float32), rng.uniform(0.1, 1, 35).astype(np.float32)
    )
    return AlignedSampler(
        GHN(config, 35, 8, 32).eval(),
        TeacherLatents(2, 4),
        norm,
        TaskInfo(TASK, "pd_joint_delta_pos", 35, 8, 50),
        32,
        [(8,), (16, 8), (32, 16)],
        [Teacher("a", True), Teacher("b", True)],
        torch.tensor([[0.7, 0.8, 0.9], [0.4, 0.5, 0.6]]),
    )
