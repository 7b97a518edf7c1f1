"""Small networks, and small things that write them: the real classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.config import DistillConfig, GHNConfig
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.distill import Distiller, DistillSpec, TaskSource
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents
from nnit_dist.hypernet.model import HypernetModel, HypernetTask, Teacher
from nnit_dist.training.sampling import TrainingDistribution

TASK = "PushCube-v1"


def random_policy(
    hidden=(16, 8), seed=0, policy_id="p", obs_dim=35, act_dim=8, *, activation="tanh"
) -> Policy:
    rng = np.random.default_rng(seed)
    topology = Topology(obs_dim, tuple(hidden), act_dim, activation)
    layers = [
        (rng.normal(0, fan_in**-0.5, (out, fan_in)), rng.normal(0, 0.1, out))
        for out, fan_in in topology.shapes
    ]
    return Policy(topology, layers, TASK, "rllib", id=policy_id)


def small_sampler():
    """An untrained hypernetwork with three teachers: the real class, small."""
    torch.manual_seed(0)
    config = GHNConfig(latent_dim=4, embed_dim=16, channels=[8, 8])
    rng = np.random.default_rng(0)
    norm = ObservationNormalizer(
        rng.normal(size=35).astype(np.float32), rng.uniform(0.1, 1, 35).astype(np.float32)
    )
    return HypernetModel(
        GHN(config, 35, 8, 32).eval(),
        [
            HypernetTask(
                TaskInfo(TASK, "pd_joint_delta_pos", 35, 8, 50),
                norm,
                TeacherLatents(3, 4),
                [Teacher("a", True), Teacher("b", True), Teacher("c", False)],
                torch.tensor([0.9, 0.9, 0.4]),
            )
        ],
        TrainingDistribution([(8,), (16, 8), (32, 16)], 0),
        1,
    )


def changed_task(model, **changes):
    """The model with something else of its only task."""
    return replace(model, tasks=[replace(model.current, **changes)])


def changed_distribution(model, **changes):
    """The model with another distribution of its training."""
    return replace(model, distribution=replace(model.distribution, **changes))


STEPS = 40


def distiller_of(directory: Path, share: tuple[int, int] = (0, 1)) -> Distiller:
    rng = np.random.default_rng(0)
    obs = [rng.normal(size=(200, 35)).astype(np.float32) for _ in range(3)]
    norm = ObservationNormalizer(np.zeros(35, np.float32), np.ones(35, np.float32))
    teachers = [random_policy((16, 16), seed) for seed in range(3)]
    DistillationData.of(norm, obs, teachers).save(directory / "states.safetensors")
    spec = DistillSpec(
        DistillConfig(steps=STEPS, topologies_per_step=2, states=32),
        GHNConfig(embed_dim=16, channels=[8, 8], latent_dim=4),
        TrainingDistribution([(8,), (16, 8), (32, 16)], 2),
        [
            TaskSource(
                TASK,
                str(directory / "states.safetensors"),
                [Teacher("a", True), Teacher("b", True), Teacher("c", False)],
            )
        ],
        seed=0,
    )
    return Distiller(spec, torch.device("cpu"), share)
