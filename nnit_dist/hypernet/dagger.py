"""Rounds of distillation with DAgger: train, roll out generated networks, train on their states.

Round 0 of DAgger (arXiv 1011.0686) trains on states of the teachers' own rollouts. Every later
round adds states that generated networks visited. The teachers' actions are the targets everywhere.
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

BAR = "distill, steps"
# Runs jobs of a task and shows their progress under a title. Returns the observations of each job's
# episodes, float32 [N, obs_dim].
Record = Callable[[TaskInfo, list[Job], str], list[np.ndarray]]


@dataclass
class DistillationRounds:
    """Training of a hypernetwork in round 0 and `distill.dagger_rounds` rounds of DAgger.

    Files that an earlier call wrote are used again.

    Attributes:
        teachers: the teachers of every task, in the order of `tasks`.
        teacher_rollouts: the directory with the distillation data of round 0.
        out: the directory for the distillation data of later rounds, for metrics, and for the
            trainer's state after each round and after each step in `stops`.
        continue_from: the file of a trained hypernetwork to start from.
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
        """Train up to step `until`, the end of a round or one of `stops`.

        Raises:
            NnitError: recording rollouts or training failed.
        """
        segments = [segment for segment in self._segments if segment.end <= until]
        done = [segment for segment in self._done if segment in segments]
        for segment in segments[segments.index(done[-1]) + 1 :] if done else segments:
            for number in range(len(self.tasks)):
                self._ensure_states(segment.round, number, record)
            self._train(segment, view)

    def model(self) -> HypernetModel:
        """The hypernetwork after the latest segment, with zeros for the success to be measured."""
        return self._model(self._done[-1])

    def forget(self) -> None:
        """Delete all states of the trainer but the newest, from which training continues."""
        for segment in self._done[:-1]:
            self._state(segment).unlink()

    @cached_property
    def _ends(self) -> list["TrainSegment"]:
        """The last segment of every round."""
        steps, rounds = self.distill.steps, self.distill.dagger_rounds + 1
        return [TrainSegment(steps * (i + 1) // rounds, i, f"round-{i}") for i in range(rounds)]

    @cached_property
    def _segments(self) -> list["TrainSegment"]:
        """All segments in order; the trainer's state is kept after each."""
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
        """Rollouts of generated networks, each with the index of the teacher it imitates most.

        Every other network has noise on its weights, as in training.
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
    """A part of one round's training, up to step `end`."""

    end: int
    round: int
    name: str


def with_noise(
    policy: Policy, norm: ObservationNormalizer, scale: float, rng: torch.Generator
) -> Policy:
    """A copy with Gaussian noise on its weights for normalized observations.

    The standard deviation is `scale` times the root mean square of each weight or bias tensor.
    """
    network = MLPBatch.from_policies([policy], norm)
    noisy = network.add_noise(scale, MLPBatch.randn(policy.topology, 1, rng))
    layers = [(weight.numpy(), bias.numpy()) for weight, bias in noisy.layers(0)]
    return replace(policy, layers=norm.fold(layers))
