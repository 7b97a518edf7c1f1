"""Refining: gradient descent on a written policy, towards the teacher that it acts most like.

A generator that serves every topology fits none of them to the end. What it wrote is a good start:
a second or two of imitation on recorded states, without a simulator, and the policy acts as its
teacher does. What is refined is trained, a little: its success is not that of the generator.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nnit_dist.align.ghn import Layers, apply_layers
from nnit_dist.align.imitation import imitate
from nnit_dist.align.latents import action_error
from nnit_dist.align.lessons import Lessons, whitened
from nnit_dist.errors import NnitError
from nnit_dist.policy import Policy
from nnit_dist.randomness import generator_of, one_thread

STEPS, STATES, LR = 2000, 256, 1e-2
TOGETHER = 16  # policies that are refined at once
COMPARED = 2000  # states on which policies and teachers are compared


def lessons_file(task: str) -> str:
    """Where the alignment stage leaves the best teachers of a task and their states."""
    return f"lessons-{task}.safetensors"


@one_thread()
def refine(
    policies: list[Policy],
    lessons: Lessons,
    steps: int = STEPS,
    seed: int = 0,
    watch: Callable[[int], None] = lambda done: None,
    scratch: bool = False,
) -> tuple[list[Policy], list[tuple[float, float]]]:
    """Policies of one task, refined, and the squared errors of each one's actions before and after.

    Errors are on states that refining does not use, one in ten. `watch` hears how many are done.
    With `scratch` they begin with random weights instead, and learn from the same teachers.

    Raises:
        NnitError: a policy is for other observations or actions than the teachers.
    """
    for policy in policies:
        if (policy.topology.obs_dim, policy.topology.act_dim) != (lessons.obs_dim, lessons.act_dim):
            raise NnitError(
                f"{policy.id} has {policy.topology.obs_dim} observations and "
                f"{policy.topology.act_dim} actions; its teachers {lessons.obs_dim} and "
                f"{lessons.act_dim}. Name with --run a run of its control mode."
            )
    learnt, kept = lessons.parted(10)
    refined, errors = [], []
    for first in range(0, len(policies), TOGETHER):
        group = policies[first : first + TOGETHER]
        starts = [whitened(policy, lessons.norm) for policy in group]
        mixes = torch.stack([_nearest(layers, kept) for layers in starts])
        topologies, begin = [p.topology for p in group], None if scratch else starts
        found = imitate(topologies, mixes, learnt, steps, seed, LR, STATES, begin)
        for policy, before, after, mix in zip(group, starts, found, mixes, strict=True):
            errors.append((_error(before, mix, kept), _error(after, mix, kept)))
            folded = lessons.norm.fold([(w[0].numpy(), b[0].numpy()) for w, b in after])
            about = {"refined_from": policy.source, "steps": str(steps)}
            refined.append(
                replace(
                    policy,
                    layers=folded,
                    source="refined",
                    id=f"{policy.id}_refined",
                    metadata=policy.metadata | about,
                )
            )
        watch(len(refined))
    return refined, errors


def load_lessons(run: Path, task: str) -> Lessons:
    """The lessons of a task that a run's alignment left; NnitError if there are none."""
    path = run / "align" / lessons_file(task)
    if not path.exists():
        raise NnitError(
            f"there is no {path}, with the teachers to learn from. Name with --run a finished run "
            f"of {task}, whose align stage writes it."
        )
    return Lessons.load(path)


def _nearest(layers: Layers, lessons: Lessons) -> torch.Tensor:
    """The teacher whose actions a network's are most like, as a mix [teachers] of it alone."""
    teachers = torch.eye(len(lessons.teachers))
    errors = [_error(layers, teacher, lessons) for teacher in teachers]
    return teachers[errors.index(min(errors))]


@torch.no_grad()
def _error(layers: Layers, mix: torch.Tensor, lessons: Lessons) -> float:
    """Mean squared error of a network's actions after a mix of teachers [teachers]."""
    obs, actions = lessons.draw(mix[None], COMPARED, generator_of(0))
    return float(action_error(apply_layers(layers, obs), actions).mean())
