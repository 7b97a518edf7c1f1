"""The alignment stage: distil the teachers of all tasks into one hypernetwork, with DAgger.

Teachers of a task are those that do it in one way (`mixing.py`). The first round trains on states
of their noised rollouts; every later one adds states that generated networks visited (`rounds.py`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import spread
from nnit_dist.core.task import SimBackend, TaskInfo
from nnit_dist.core.topology import Hidden
from nnit_dist.core.zoo import Member
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED
from nnit_dist.hypernet.config import AlignConfig
from nnit_dist.hypernet.dagger import BAR, Record, Rounds, states_file
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.model import HypernetModel, save_samplers
from nnit_dist.hypernet.modes import largest_behavior_mode, measure_pairs
from nnit_dist.hypernet.teachers import TeacherSet
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.evaluation import evaluate
from nnit_dist.rollout.queue import Job
from nnit_dist.rollout.recording import record
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.state import METRICS, read_metrics, steps_logged
from nnit_dist.transfer.refine import distillation_file

MODEL = "ghn.safetensors"
TEACHER_NOISE = (0.0, 0.1, 0.3)
SUCCESS_TOPOLOGIES = 4  # success after a teacher hardly differs from topology to topology
KEPT_STATES = 40_000  # of a task, that are kept for refining


def save_distillation_data(
    sampler: HypernetModel, distillation_data: DistillationData, out: Path
) -> None:
    """Keep, for refining, what the best teachers do, and some of the states to do it in."""
    kept = distillation_data.of_teachers(sampler.best).thinned(KEPT_STATES)
    kept.save(out / distillation_file(sampler.task.name))


class Alignment:
    """Trains the hypernetwork on the `seen` topologies, their widths varied by up to `variation`.

    Reads the teachers among `members`, and the hypernetwork `continue_from`, if any, to begin
    with. Writes `out/ghn.safetensors`, `out/metrics.jsonl`, a file of states a task and one of the
    trainer's state per round, from which it resumes, and `out/success`, the measured episodes of
    its networks.

    Raises:
        NnitError: no teacher of a task is good enough.
    """

    def __init__(
        self,
        config: AlignConfig,
        members: list[Member],
        tasks: list[TaskInfo],
        seen: list[Hidden],
        variation: int,
        out: Path,
        placement: Placement,
        seed: int,
        actors: int | None,
        sim_backend: SimBackend = "auto",
        continue_from: Path | None = None,
    ) -> None:
        self.config, self.tasks, self.seen, self.variation = config, tasks, seen, variation
        self.out, self.placement, self.seed, self.actors = out, placement, seed, actors
        self.sim_backend, self.continue_from = sim_backend, continue_from
        self.teacher_sets = [
            TeacherSet.of(t, i, members, config.min_success, config.snapshots)
            for i, t in enumerate(tasks)
        ]
        self.lost: list[list[dict[str, Any]]] = []  # by averages of two teachers, a task each

    def run(self) -> dict[str, Any]:
        """Every round that is left; returns the stage's figures. NnitError if training fails."""
        distill = self.config.distill
        self.teacher_sets = [self._of_one_mode(teacher_set) for teacher_set in self.teacher_sets]
        rounds = self._rounds()
        with StageProgress("") as view:
            view.add(BAR, distill.steps, steps_logged(self.out / METRICS))
            for teacher_set in self.teacher_sets:
                self._ensure_teacher_rollouts(teacher_set, view)
            rounds.train(distill.steps, self._record(view), view)
        samplers = rounds.samplers()
        for sampler in samplers:
            sampler.success = self._measure(sampler)
        save_samplers(samplers, self.out / MODEL)
        for sampler in samplers:
            distillation_data = states_file(self.out, sampler.task.name, distill.dagger_rounds)
            save_distillation_data(sampler, DistillationData.load(distillation_data), self.out)
        return self._figures(samplers)

    def _rounds(self) -> Rounds:
        return Rounds(
            self.config.ghn,
            self.config.distill,
            self.tasks,
            [teacher_set.about for teacher_set in self.teacher_sets],
            self.seen,
            self.variation,
            self.out,
            self.out,
            self.placement,
            self.seed,
            self.continue_from,
        )

    def _figures(self, samplers: list[HypernetModel]) -> dict[str, Any]:
        distill = self.config.distill
        return {
            "tasks": {
                sampler.task.name: {
                    "teachers": {
                        member.policy.id: member.success_once for member in teacher_set.best
                    },
                    "lost_by_averages": self.lost[teacher_set.number],
                    "success_after": {
                        "mixes of the best" if teacher.best else teacher.id: success
                        for teacher, success in zip(
                            sampler.teachers, sampler.success.tolist(), strict=True
                        )
                    },
                }
                for sampler, teacher_set in zip(samplers, self.teacher_sets, strict=True)
            },
            "action_mse": read_metrics(self.out / METRICS)[-1]["action_mse"],
            "steps": distill.steps,
            "teacher_episodes": sum(len(f.policies) for f in self.teacher_sets)
            * distill.teacher_episodes,
            "dagger_episodes": distill.dagger_rounds
            * distill.dagger_networks
            * distill.dagger_episodes,
            "parameters": sum(p.numel() for p in samplers[0].ghn.parameters()),
        }

    def _of_one_mode(self, teacher_set: TeacherSet) -> TeacherSet:
        """Its teachers of which any two can be mixed; all where none are."""
        if self.config.distill.max_teachers_per_mix == 1:
            self.lost.append([])
            return teacher_set
        lost = measure_pairs(
            teacher_set.best,
            self.config.success_episodes,
            self.out / "averages" / teacher_set.task.name,
            self.actors,
            self.sim_backend,
        )
        names = [member.policy.id for member in teacher_set.best]
        self.lost.append(
            [{"teachers": [names[i] for i in pair], "lost": cost} for pair, cost in lost.items()]
        )
        return teacher_set.only(
            largest_behavior_mode(len(names), lost, self.config.max_average_drop)
        )

    def _ensure_teacher_rollouts(self, teacher_set: TeacherSet, view: StageProgress) -> None:
        """What the first round learns on: states that the teachers visit."""
        path, teachers = states_file(self.out, teacher_set.task.name, 0), teacher_set.policies
        if path.exists():
            return
        jobs = [self._teacher_jobs(policy, number) for number, policy in enumerate(teachers)]
        title = f"{teacher_set.task.name}, record teachers"
        states = iter(self._record(view)(teacher_set.task, [j for own in jobs for j in own], title))
        collected = [np.concatenate([next(states) for _ in own]) for own in jobs]
        norm = ObservationNormalizer.fit(np.concatenate(collected))
        DistillationData.of(norm, [norm.apply(seen) for seen in collected], teachers).save(path)

    def _teacher_jobs(self, policy: Policy, teacher: int) -> list[Job]:
        """Recorded episodes of one teacher at several noise levels, a few seeds a job."""
        first = self.seed * 100_000 + teacher * 1_000
        jobs = []
        for start in range(0, self.config.distill.teacher_episodes, 4):
            stop = min(start + 4, self.config.distill.teacher_episodes)
            noise = TEACHER_NOISE[(start // 4) % len(TEACHER_NOISE)]
            seeds = tuple((first + k) % TRAIN_SEEDS for k in range(start, stop))
            jobs.append(Job(policy, seeds, noise, record=True))
        return jobs

    def _record(self, view: StageProgress) -> Record:
        def shown(task: TaskInfo, jobs: list[Job], title: str) -> list[np.ndarray]:
            view.add(title, total=sum(len(job.seeds) for job in jobs))
            simulators = Simulators(task.name, task.control_mode, sim_backend=self.sim_backend)

            def follow(done: int, seconds_left: float) -> None:
                view.update(title, done, seconds_left=seconds_left)

            return record(simulators, self.actors, jobs, follow)

        return shown

    def _measure(self, sampler: HypernetModel) -> Tensor:
        """Success of networks after every teacher, [teachers], over several seen topologies.

        Networks after the best are after mixes of them, and count alike: their mean.
        """
        policies = []
        hiddens = spread(self.seen, SUCCESS_TOPOLOGIES)
        for hidden in hiddens:
            mixed = iter(sampler.policies(hidden, len(sampler.best), self.seed))
            for number, teacher in enumerate(sampler.teachers):
                if teacher.best:
                    policy = next(mixed)
                else:
                    (policy,) = sampler.policies(hidden, 1, self.seed, sampler.pure(number))
                policy.id = f"after_{number}_{policy.topology.name}"
                policies.append(policy)
        result = evaluate(
            policies,
            self.config.success_episodes,
            self.out / "success" / sampler.task.name,
            self.actors,
            sim_backend=self.sim_backend,
            first_seed=VALIDATION_SEED,
            title=f"{sampler.task.name}, success after each teacher",
        )
        if result.failures:
            raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
        success = torch.tensor([row["success_once"] for row in result.rows()])
        success = success.view(len(hiddens), len(sampler.teachers)).mean(0)
        success[sampler.best] = success[sampler.best].mean()
        return success
