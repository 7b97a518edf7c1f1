"""Rounds of distillation: train, roll generated networks out, and learn on what they visited too.

DAgger (arXiv 1011.0686): round 0 learns on states of the teachers' own rollouts. Every later round
adds states that generated networks visited, where the teachers say what to do.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnit_dist.align.distill import DistillConfig, distill_worker
from nnit_dist.align.ghn import GHNConfig
from nnit_dist.align.latents import TeacherLatents
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.sampler import AlignedSampler, Teacher, build_ghn
from nnit_dist.align.turns import round_of
from nnit_dist.envs.sim import TRAIN_SEEDS
from nnit_dist.envs.tasks import TaskInfo
from nnit_dist.evaluate.backlog import Job
from nnit_dist.normalization import InputNorm
from nnit_dist.policy import Policy
from nnit_dist.progress import StageProgress
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Hidden
from nnit_dist.training import Placement, fit, load_state

BAR = "distil, steps"
# Runs jobs of a task, and shows how far they are under a title; returns what each job's episodes
# visited, float32 [N, obs_dim] a job.
Record = Callable[[TaskInfo, list[Job], str], list[np.ndarray]]


@dataclass
class Rounds:
    """Trains a hypernetwork on the `seen` topologies, in `distill.dagger_rounds` rounds and one.

    `teachers` are those of every task; what the first round learns on are files of states in
    `lectures` (`states_file`). Writes into `out` the states of later rounds, metrics, and the
    trainer's state after each round and, beside these, after steps `stops`; whatever there is of
    it is not made again. `continue_from` is a hypernetwork to begin with.
    """

    ghn: GHNConfig
    distill: DistillConfig
    tasks: list[TaskInfo]
    teachers: list[list[Teacher]]
    seen: list[Hidden]
    variation: int
    lectures: Path
    out: Path
    placement: Placement
    seed: int
    continue_from: Path | None = None
    stops: Sequence[int] = ()

    def train(self, until: int, record: Record, view: StageProgress) -> None:
        """What is left up to step `until`, an end of a round or a stop; NnitError if it fails."""
        legs = [leg for leg in self._legs if leg.end <= until]
        done = [leg for leg in self._done if leg in legs]
        for leg in legs[legs.index(done[-1]) + 1 :] if done else legs:
            for number in range(len(self.tasks)):
                self._ensure_states(leg.round, number, record)
            self._train(leg, view)

    def samplers(self) -> list[AlignedSampler]:
        """One a task, as far as is trained; their success is not measured."""
        return self._samplers(self._done[-1])

    def forget(self) -> None:
        """Delete all states of the trainer but the newest: nothing goes on from them any more."""
        for leg in self._done[:-1]:
            self._state(leg).unlink()

    @property
    def max_width(self) -> int:
        return max(max(hidden) for hidden in self.seen)

    @cached_property
    def _ends(self) -> list["_Leg"]:
        """The last piece of training of every round."""
        steps, rounds = self.distill.steps, self.distill.dagger_rounds + 1
        return [_Leg(steps * (i + 1) // rounds, i, f"round-{i}") for i in range(rounds)]

    @cached_property
    def _legs(self) -> list["_Leg"]:
        """Pieces of training, after each of which its state is kept."""
        ends = [leg.end for leg in self._ends]
        stops = sorted(set(self.stops) - set(ends))
        between = [_Leg(stop, bisect_left(ends, stop), f"step-{stop}") for stop in stops]
        return sorted([*self._ends, *between], key=lambda leg: (leg.end, leg.round))

    @property
    def _done(self) -> list["_Leg"]:
        return [leg for leg in self._legs if self._state(leg).exists()]

    def _state(self, leg: "_Leg") -> Path:
        return self.out / f"{leg.name}.pt"

    def _states(self, index: int, number: int) -> Path:
        return states_file(self.out if index else self.lectures, self.tasks[number].name, index)

    def _ensure_states(self, index: int, number: int, record: Record) -> None:
        if index == 0 or self._states(index, number).exists():
            return
        before = Lessons.load(self._states(index - 1, number))
        jobs = self._jobs(index, number)
        title = f"{self.tasks[number].name}, DAgger round {index}"
        visited = record(self.tasks[number], [job for _, job in jobs], title)
        obs = [[old] for old in before.obs]
        for (teacher, _), new in zip(jobs, visited, strict=True):
            obs[teacher].append(torch.from_numpy(before.norm.apply(new)))
        lessons = replace(before, obs=[torch.cat(parts) for parts in obs])
        lessons.save(self._states(index, number))

    def _jobs(self, index: int, number: int) -> list[tuple[int, Job]]:
        """Generated networks near random seen topologies, by the teacher they are most after.

        Every other one has the noise on its weights that training has.
        """
        distill = self.distill
        sampler = self._samplers(self._ends[index - 1])[number]
        turns = round_of([task.name for task in self.tasks], distill.turns)
        jobs: list[tuple[int, Job]] = []
        for network in range(distill.dagger_networks):
            if turns[network % len(turns)] != number:
                continue
            rng = generator_of(self.seed + 1, index, network)
            hidden = self.seen[int(torch.randint(len(self.seen), (), generator=rng))]
            topology = sampler.vary(hidden, rng)
            (mix,) = sampler.mixes(1, distill.best_share, rng)
            seed = int(torch.randint(2**31, (), generator=rng))
            (policy,) = sampler.policies(topology.hidden, 1, seed, mix)
            if len(jobs) % 2:
                policy = noised(policy, sampler.norm, distill.weight_noise, rng)
            policy.id = f"dagger_{index}_{network}"
            last = TRAIN_SEEDS - distill.dagger_episodes
            start = int(torch.randint(last, (), generator=rng))
            seeds = tuple(range(start, start + distill.dagger_episodes))
            jobs.append((int(mix.argmax()), Job(policy, seeds, record=True)))
        return jobs

    def _train(self, leg: "_Leg", view: StageProgress) -> None:
        known, number = self.continue_from, self._legs.index(leg)
        start = self._state(self._legs[number - 1]) if number else None
        fit(
            distill_worker,
            {
                "distill": self.distill.model_dump(),
                "ghn": self.ghn.model_dump(),
                "topologies": json.dumps(self.seen),
                "variation": self.variation,
                "max_width": self.max_width,
                "tasks": [
                    {
                        "task": task.name,
                        "states": str(self._states(leg.round, i).absolute()),
                        "teachers": [(teacher.id, teacher.best) for teacher in self.teachers[i]],
                    }
                    for i, task in enumerate(self.tasks)
                ],
                "continue_from": str(known.absolute()) if known else None,
                "start_from": str(start.absolute()) if start else None,
                "result": str(self._state(leg).absolute()),
                "until": leg.end,
                "seed": self.seed,
            },
            self.out,
            leg.name,
            (view, BAR),
            self.placement,
        )

    def _samplers(self, leg: "_Leg") -> list[AlignedSampler]:
        saved = load_state(self._state(leg))
        ghn = build_ghn(self.ghn, self.tasks, self.max_width)
        ghn.load_state_dict(saved["ghn"])
        latents = nn.ModuleList(
            TeacherLatents(len(teachers), self.ghn.latent_dim) for teachers in self.teachers
        )
        latents.load_state_dict(saved["latents"])
        return [
            AlignedSampler(
                ghn.eval(),
                latents[i].eval(),  # type: ignore[arg-type]  # a ModuleList of these
                Lessons.load(self._states(leg.round, i)).norm,
                task,
                self.max_width,
                self.seen,
                self.variation,
                self.distill.blended,
                self.teachers[i],
                torch.zeros(len(self.teachers[i])),
                i,
            )
            for i, task in enumerate(self.tasks)
        ]


@dataclass(frozen=True)
class _Leg:
    """A piece of training, of one round, up to a step."""

    end: int
    round: int
    name: str


def states_file(directory: Path, task: str, index: int) -> Path:
    """Where there is what a round learns on of a task."""
    return directory / f"states-{task}-{index}.safetensors"


def noised(policy: Policy, norm: InputNorm, scale: float, rng: torch.Generator) -> Policy:
    """With noise on its weights for whitened inputs, `scale` times the rms of each tensor."""
    layers = [
        tuple(
            x + scale * math.sqrt((x**2).mean()) * torch.randn(x.shape, generator=rng).numpy()
            for x in layer
        )
        for layer in norm.unfold(policy.layers)
    ]
    return replace(policy, layers=norm.fold(layers))
