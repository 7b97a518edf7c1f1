"""Refining: a generated policy is trained to imitate the teacher that it acts most like.

A generator for all topologies fits none of them perfectly, but its policies are good starting
points. One or two seconds of imitation on recorded states, without a simulator, are enough for a
policy to act as its teacher does. A refined policy is trained, so its success is no measure of the
generator.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import one_thread, stream
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.imitation import imitate
from nnit_dist.hypernet.latents import action_error
from nnit_dist.hypernet.model import HypernetModel

STEPS, STATES, LR = 2000, 256, 1e-2
TOGETHER = 16  # policies that are refined in one batch
KEPT_STATES = 40_000  # states of a task that are kept for refining
COMPARED = 2000  # states on which policies and teachers are compared


@one_thread()
def refine(
    policies: list[Policy],
    distillation_data: DistillationData,
    steps: int = STEPS,
    seed: int = 0,
    *,
    watch: Callable[[int], None] = lambda done: None,
    scratch: bool = False,
) -> tuple[list[Policy], list[tuple[float, float]]]:
    """Refine policies of one task; return them, and each one's action error before and after.

    Errors are mean squared errors on a tenth of the states, which refining does not train on.
    `watch` is called with the number of refined policies. With `scratch`, training starts from
    random weights, with the same teachers.

    Raises:
        NnitError: a policy and the teachers have different numbers of observations or actions.
    """
    for policy in policies:
        if (policy.topology.obs_dim, policy.topology.act_dim) != (
            distillation_data.obs_dim,
            distillation_data.act_dim,
        ):
            raise NnitError(
                f"{policy.id} has {policy.topology.obs_dim} observations and "
                f"{policy.topology.act_dim} actions; its teachers {distillation_data.obs_dim} and "
                f"{distillation_data.act_dim}. Name with --run a run of its control mode."
            )
    learnt, kept = distillation_data.parted(10)
    refined, errors = [], []
    for first in range(0, len(policies), TOGETHER):
        group = policies[first : first + TOGETHER]
        starts = MLPBatch.from_policies(group, distillation_data.norm)
        each = [starts.select([i]).cropped() for i in range(len(group))]
        teacher_weights = torch.stack([_nearest(network, kept) for network in each])
        begin = [policy.topology for policy in group] if scratch else starts
        trained = imitate(begin, teacher_weights, learnt, steps, seed=seed, lr=LR, states=STATES)
        for i, (policy, before, mix) in enumerate(zip(group, each, teacher_weights, strict=True)):
            errors.append((_error(before, mix, kept), _error(trained.select([i]), mix, kept)))
            layers = [(weight.numpy(), bias.numpy()) for weight, bias in trained.layers(i)]
            provenance = {"refined_from": policy.source, "steps": str(steps)}
            refined.append(
                replace(
                    policy,
                    layers=distillation_data.norm.fold(layers),
                    source="refined",
                    id=f"{policy.id}_refined",
                    metadata=policy.metadata | provenance,
                )
            )
        watch(len(refined))
    return refined, errors


def keep_for_refining(model: HypernetModel, data: DistillationData, path: Path) -> None:
    """Write the best teachers of a task, and some of their states, to `path`."""
    data.of_teachers(model.current.best).thinned(KEPT_STATES).save(path)


def load_distillation_data(run: RunDirectory, task: str, control_mode: str) -> DistillationData:
    """Read the distillation data of a task that the align stage of a run wrote.

    Raises:
        NnitError: the run has no distillation data of the task, or is of another control mode.
    """
    path = run.distillation_data(task)
    if not path.exists():
        raise NnitError(
            f"there is no {path}, with the teachers to learn from. Name with --run a finished run "
            f"of {task}, whose align stage writes it."
        )
    if run.is_finished("align"):
        of_run = run.settings("align").get("control_mode", control_mode)
        if of_run != control_mode:
            raise NnitError(
                f"the teachers of {run} act in {of_run}, and the policies in {control_mode}. Name "
                "with --run a run of their control mode."
            )
    return DistillationData.load(path)


def _nearest(network: MLPBatch, distillation_data: DistillationData) -> torch.Tensor:
    """A mix [T] of the one teacher whose actions are most like the network's."""
    teachers = torch.eye(len(distillation_data.teachers))
    errors = [_error(network, teacher, distillation_data) for teacher in teachers]
    return teachers[errors.index(min(errors))]


@torch.no_grad()
def _error(network: MLPBatch, mix: torch.Tensor, distillation_data: DistillationData) -> float:
    """Mean squared error between a network's actions and those of a mix of teachers [T]."""
    obs, actions = distillation_data.draw(mix[None], COMPARED, stream("refine.compare"))
    return float(action_error(network.forward(obs), actions).mean())
