"""The alignment stage: distil the teachers of all tasks into one hypernetwork, with DAgger.

Teachers of a task are those that do it in one way (`mixing.py`). The first round trains on states
of their noised rollouts; every later one adds states that generated networks visited (`rounds.py`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nnit_dist.align.distill import DistillConfig
from nnit_dist.align.faculty import Faculty
from nnit_dist.align.ghn import GHNConfig
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.mixing import measure_pairs, one_mode
from nnit_dist.align.refine import lessons_file
from nnit_dist.align.rounds import BAR, Record, Rounds, states_file
from nnit_dist.align.sampler import AlignedSampler, save_samplers
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED
from nnit_dist.envs.tasks import TaskInfo
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.backlog import Job
from nnit_dist.evaluate.recording import record
from nnit_dist.evaluate.run import evaluate
from nnit_dist.evaluate.simulator import SimBackend, Simulators
from nnit_dist.normalization import InputNorm
from nnit_dist.policy import Policy
from nnit_dist.progress import StageProgress
from nnit_dist.topology import Hidden, spread
from nnit_dist.training import METRICS, Placement, read_metrics, steps_logged
from nnit_dist.zoo import Member

MODEL = "ghn.safetensors"
TEACHER_NOISE = (0.0, 0.1, 0.3)
SUCCESS_TOPOLOGIES = 4  # success after a teacher hardly differs from topology to topology
LESSON_STATES = 40_000  # of a task, that are kept for refining


class AlignConfig(BaseModel):
    """The hypernetwork and its training."""

    model_config = ConfigDict(extra="forbid")

    min_success: float = Field(
        0.9, ge=0, le=1, description="trials whose best snapshot is below this teach nothing"
    )
    snapshots: int = Field(
        0,
        ge=0,
        strict=True,
        description="earlier snapshots of each of the teachers' trials, evenly over its training, "
        "that teach as well, so that NNiT can be asked for a success",
    )
    success_episodes: int = Field(
        100,
        gt=0,
        description="of every average of two teachers, and at the end of networks of some "
        "topologies after every teacher",
    )
    mix_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="success that the average of any two teachers of a task may cost; of the best, "
        "the largest set of which that is so teaches",
    )
    ghn: GHNConfig = GHNConfig()
    distill: DistillConfig = DistillConfig()


def save_lessons(sampler: AlignedSampler, lessons: Lessons, out: Path) -> None:
    """Keep, for refining, what the best teachers do, and some of the states to do it in."""
    kept = lessons.of_teachers(sampler.best).thinned(LESSON_STATES)
    kept.save(out / lessons_file(sampler.task.name))


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
        self.faculties = [
            Faculty.of(t, i, members, config.min_success, config.snapshots)
            for i, t in enumerate(tasks)
        ]
        self.lost: list[list[dict[str, Any]]] = []  # by averages of two teachers, a task each

    def run(self) -> dict[str, Any]:
        """Every round that is left; returns the stage's figures. NnitError if training fails."""
        distill = self.config.distill
        self.faculties = [self._of_one_mode(faculty) for faculty in self.faculties]
        rounds = self._rounds()
        with StageProgress("") as view:
            view.add(BAR, distill.steps, steps_logged(self.out / METRICS))
            for faculty in self.faculties:
                self._ensure_lectures(faculty, view)
            rounds.train(distill.steps, self._record(view), view)
        samplers = rounds.samplers()
        for sampler in samplers:
            sampler.success = self._measure(sampler)
        save_samplers(samplers, self.out / MODEL)
        for sampler in samplers:
            lessons = states_file(self.out, sampler.task.name, distill.dagger_rounds)
            save_lessons(sampler, Lessons.load(lessons), self.out)
        return self._figures(samplers)

    def _rounds(self) -> Rounds:
        return Rounds(
            self.config.ghn,
            self.config.distill,
            self.tasks,
            [faculty.about for faculty in self.faculties],
            self.seen,
            self.variation,
            self.out,
            self.out,
            self.placement,
            self.seed,
            self.continue_from,
        )

    def _figures(self, samplers: list[AlignedSampler]) -> dict[str, Any]:
        distill = self.config.distill
        return {
            "tasks": {
                sampler.task.name: {
                    "teachers": {member.policy.id: member.success_once for member in faculty.best},
                    "lost_by_averages": self.lost[faculty.number],
                    "success_after": {
                        "mixes of the best" if teacher.best else teacher.id: success
                        for teacher, success in zip(
                            sampler.teachers, sampler.success.tolist(), strict=True
                        )
                    },
                }
                for sampler, faculty in zip(samplers, self.faculties, strict=True)
            },
            "action_mse": read_metrics(self.out / METRICS)[-1]["action_mse"],
            "steps": distill.steps,
            "teacher_episodes": sum(len(f.policies) for f in self.faculties)
            * distill.teacher_episodes,
            "dagger_episodes": distill.dagger_rounds
            * distill.dagger_networks
            * distill.dagger_episodes,
            "parameters": sum(p.numel() for p in samplers[0].ghn.parameters()),
        }

    def _of_one_mode(self, faculty: Faculty) -> Faculty:
        """Its teachers of which any two can be mixed; all where none are."""
        if self.config.distill.blended == 1:
            self.lost.append([])
            return faculty
        lost = measure_pairs(
            faculty.best,
            self.config.success_episodes,
            self.out / "averages" / faculty.task.name,
            self.actors,
            self.sim_backend,
        )
        names = [member.policy.id for member in faculty.best]
        self.lost.append(
            [{"teachers": [names[i] for i in pair], "lost": cost} for pair, cost in lost.items()]
        )
        return faculty.only(one_mode(len(names), lost, self.config.mix_loss))

    def _ensure_lectures(self, faculty: Faculty, view: StageProgress) -> None:
        """What the first round learns on: states that the teachers visit."""
        path, teachers = states_file(self.out, faculty.task.name, 0), faculty.policies
        if path.exists():
            return
        jobs = [self._lectures(policy, number) for number, policy in enumerate(teachers)]
        title = f"{faculty.task.name}, record teachers"
        states = iter(self._record(view)(faculty.task, [j for own in jobs for j in own], title))
        collected = [np.concatenate([next(states) for _ in own]) for own in jobs]
        norm = InputNorm.fit(np.concatenate(collected))
        Lessons.of(norm, [norm.apply(seen) for seen in collected], teachers).save(path)

    def _lectures(self, policy: Policy, teacher: int) -> list[Job]:
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

    def _measure(self, sampler: AlignedSampler) -> Tensor:
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
