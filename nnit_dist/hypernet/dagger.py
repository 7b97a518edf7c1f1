"""Rounds of distillation: train, roll generated networks out, and learn on what they visited too.

DAgger (arXiv 1011.0686): round 0 learns on states of the teachers' own rollouts. Every later round
adds states that generated networks visited, where the teachers say what to do.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from nnit_dist.artifacts.model_file import part
from nnit_dist.artifacts.run_directory import AlignDirectory
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import stream
from nnit_dist.core.task import TaskInfo
from nnit_dist.envs.sim import TRAIN_SEEDS
from nnit_dist.hypernet.config import DistillConfig, GHNConfig
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.distill import DistillSpec, DistillWork, TaskSource, distill_worker
from nnit_dist.hypernet.latents import TeacherLatents
from nnit_dist.hypernet.model import HypernetModel, HypernetTask, Teacher, build_ghn
from nnit_dist.rollout.queue import Job
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import fit
from nnit_dist.training.sampling import TaskSampler, TrainingDistribution
from nnit_dist.training.state import load_state

BAR = "distil, steps"
# Runs jobs of a task, and shows how far they are under a title; returns what each job's episodes
# visited, float32 [N, obs_dim] a job.
Record = Callable[[TaskInfo, list[Job], str], list[np.ndarray]]


@dataclass
class DistillationRounds:
    """Trains a hypernetwork in `distill.dagger_rounds` rounds and one.

    Whatever there is of what it writes is not made again.

    Attributes:
        teachers: of every task.
        teacher_rollouts: holds the distillation data of the first round.
        out: gets the distillation data of later rounds, metrics, and the trainer's state after
            each round and after steps `stops`.
        continue_from: a hypernetwork to begin with.
    """

    ghn: GHNConfig
    distill: DistillConfig
    tasks: list[TaskInfo]
    teachers: list[list[Teacher]]
    distribution: TrainingDistribution
    teacher_rollouts: AlignDirectory
    out: AlignDirectory
    placement: Placement
    seed: int
    continue_from: Path | None = None
    stops: Sequence[int] = ()

    def train(self, until: int, record: Record, view: StageProgress) -> None:
        """What is left up to step `until`, an end of a round or a stop; NnitError if it fails."""
        segments = [segment for segment in self._segments if segment.end <= until]
        done = [segment for segment in self._done if segment in segments]
        for segment in segments[segments.index(done[-1]) + 1 :] if done else segments:
            for number in range(len(self.tasks)):
                self._ensure_states(segment.round, number, record)
            self._train(segment, view)

    def model(self) -> HypernetModel:
        """The hypernetwork as far as it is trained; the success of its networks is not measured."""
        return self._model(self._done[-1])

    def forget(self) -> None:
        """Delete all states of the trainer but the newest: nothing goes on from them any more."""
        for segment in self._done[:-1]:
            self._state(segment).unlink()

    @cached_property
    def _ends(self) -> list["TrainSegment"]:
        """The last piece of training of every round."""
        steps, rounds = self.distill.steps, self.distill.dagger_rounds + 1
        return [TrainSegment(steps * (i + 1) // rounds, i, f"round-{i}") for i in range(rounds)]

    @cached_property
    def _segments(self) -> list["TrainSegment"]:
        """Pieces of training, after each of which its state is kept."""
        ends = [segment.end for segment in self._ends]
        stops = sorted(set(self.stops) - set(ends))
        between = [TrainSegment(stop, bisect_left(ends, stop), f"step-{stop}") for stop in stops]
        return sorted([*self._ends, *between], key=lambda segment: (segment.end, segment.round))

    @property
    def _done(self) -> list["TrainSegment"]:
        return [segment for segment in self._segments if self._state(segment).exists()]

    def _state(self, segment: "TrainSegment") -> Path:
        return self.out.trainer_state(segment.name)

    def _states(self, index: int, number: int) -> Path:
        directory = self.out if index else self.teacher_rollouts
        return directory.states(self.tasks[number].name, index)

    def _ensure_states(self, index: int, number: int, record: Record) -> None:
        if index == 0 or self._states(index, number).exists():
            return
        before = DistillationData.load(self._states(index - 1, number))
        jobs = self._jobs(index, number)
        title = f"{self.tasks[number].name}, DAgger round {index}"
        visited = record(self.tasks[number], [job for _, job in jobs], title)
        obs = [[old] for old in before.obs]
        for (teacher, _), new in zip(jobs, visited, strict=True):
            obs[teacher].append(torch.from_numpy(before.norm.apply(new)))
        distillation_data = replace(before, obs=[torch.cat(parts) for parts in obs])
        distillation_data.save(self._states(index, number))

    def _jobs(self, index: int, number: int) -> list[tuple[int, Job]]:
        """Generated networks near random seen topologies, by the teacher they imitate most.

        Every other one has the noise on its weights that training has.
        """
        distill, jobs = self.distill, list[tuple[int, Job]]()
        model = self._model(self._ends[index - 1]).each_task()[number]
        tasks = TaskSampler([task.name for task in self.tasks], distill.task_weights)
        for network in range(distill.dagger_networks):
            if tasks.task_of(network) != number:
                continue
            rng = stream("hypernet.dagger", self.seed, index, network)
            noise = distill.weight_noise if len(jobs) % 2 else 0.0
            teacher, policy = self._generated(model, noise, rng)
            policy.id = f"dagger_{index}_{network}"
            start = int(torch.randint(TRAIN_SEEDS - distill.dagger_episodes, (), generator=rng))
            seeds = tuple(range(start, start + distill.dagger_episodes))
            jobs.append((teacher, Job(policy, seeds, record=True)))
        return jobs

    def _generated(
        self, model: HypernetModel, noise: float, rng: torch.Generator
    ) -> tuple[int, Policy]:
        """A network near a random seen topology, and the teacher that it imitates most."""
        seen = self.distribution.seen
        hidden = seen[int(torch.randint(len(seen), (), generator=rng))]
        topology = model.vary_widths(hidden, rng)
        (weights,) = model.draw_teacher_weights(1, self.distill.best_share, rng)
        seed = int(torch.randint(2**31, (), generator=rng))
        (policy,) = model.policies(topology.hidden, 1, seed, weights)
        if noise:
            policy = with_noise(policy, model.current.normalizer, noise, rng)
        return int(weights.argmax()), policy

    def _train(self, segment: "TrainSegment", view: StageProgress) -> None:
        earlier, number = self.continue_from, self._segments.index(segment)
        start = self._state(self._segments[number - 1]) if number else None
        sources = [
            TaskSource(task.name, str(self._states(segment.round, i).absolute()), self.teachers[i])
            for i, task in enumerate(self.tasks)
        ]
        work = DistillWork(
            DistillSpec(self.distill, self.ghn, self.distribution, sources, self.seed),
            segment.end,
            result=str(self._state(segment).absolute()),
            continue_from=str(earlier.absolute()) if earlier else None,
            start_from=str(start.absolute()) if start else None,
        )
        fit(
            distill_worker,
            work,
            self.placement,
            directory=self.out.path,
            name=segment.name,
            view=(view, BAR),
        )

    def _model(self, segment: "TrainSegment") -> HypernetModel:
        saved = load_state(self._state(segment))
        ghn = build_ghn(self.ghn, self.tasks, self.distribution.max_width)
        ghn.load_state_dict(saved["ghn"])
        tasks = []
        for i, (task, teachers) in enumerate(zip(self.tasks, self.teachers, strict=True)):
            latents = TeacherLatents(len(teachers), self.ghn.latent_dim)
            latents.load_state_dict(part(saved["latents"], f"{i}."))
            normalizer = DistillationData.load(self._states(segment.round, i)).norm
            success = torch.zeros(len(teachers))
            tasks.append(HypernetTask(task, normalizer, latents.eval(), teachers, success))
        return HypernetModel(
            ghn.eval(), tasks, self.distribution, self.distill.max_teachers_per_mix
        )


@dataclass(frozen=True)
class TrainSegment:
    """A piece of training, of one round, up to a step."""

    end: int
    round: int
    name: str


def with_noise(
    policy: Policy, norm: ObservationNormalizer, scale: float, rng: torch.Generator
) -> Policy:
    """With noise on its weights for normalized inputs, `scale` times the rms of each tensor."""
    network = MLPBatch.from_policies([policy], norm)
    noisy = network.add_noise(scale, MLPBatch.randn(policy.topology, 1, rng))
    layers = [(weight.numpy(), bias.numpy()) for weight, bias in noisy.layers(0)]
    return replace(policy, layers=norm.fold(layers))
