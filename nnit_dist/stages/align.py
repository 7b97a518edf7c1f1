"""The align stage: distill the teachers of all tasks into one hypernetwork, with DAgger.

Reads: the zoo, and the hypernetwork of the run that this one continues from, if any.
Does: selects the teachers of one behavior mode for each task and records states that they visit.
Trains the hypernetwork to imitate them (Ray Train). In each DAgger round, adds states that
generated networks visit. Measures the success of generated networks.
Writes: `align/ghn.safetensors`, its losses, the distillation data and the trainer's state of each
round (to resume from), the data for refining, and all measured episodes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnit_dist.artifacts.run_directory import AlignDirectory, RunDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import numpy_stream
from nnit_dist.core.splits import spread
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Hidden
from nnit_dist.core.zoo import Member
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED, task_info
from nnit_dist.hypernet.dagger import BAR, DistillationRounds, Record
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.model import HypernetModel, HypernetTask
from nnit_dist.hypernet.modes import largest_behavior_mode, measure_pairs
from nnit_dist.hypernet.teachers import TeacherSet
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.queue import Job
from nnit_dist.rollout.recording import record
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.config import RunConfig
from nnit_dist.stages.plan import Figures, RunContext, StagePlan
from nnit_dist.training.sampling import TrainingDistribution
from nnit_dist.training.state import read_metrics, steps_logged
from nnit_dist.transfer.refine import keep_for_refining

TEACHER_NOISE = (0.0, 0.1, 0.3)  # standard deviations of action noise; jobs take them in turn
EPISODES_A_JOB = 4
SUCCESS_TOPOLOGIES = 4  # a teacher's imitators succeed about equally on all of them


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if the population stage is not finished."""
    context.run.require("population")
    config, zoo, earlier = context.config, context.run.zoo(), context.earlier(RunDirectory.hypernet)

    def work(out: Path) -> Figures:
        tasks = [task_info(task, config.control_mode) for task in config.tasks]
        members, seen = list(zoo.members()), context.split.seen
        return Alignment(
            config, tasks, members, seen, out=AlignDirectory(out), continue_from=earlier
        ).run()

    return StagePlan(
        "align",
        context.reads("tasks", "control_mode", "align", "topologies", "seed"),
        {"zoo": zoo.path} | ({"known": earlier} if earlier else {}),
        work,
    )


class Alignment:
    """Trains the hypernetwork on the `seen` topologies, from the teachers among `members`.

    Raises:
        NnitError: a task has no teacher with `align.min_success`.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: list[TaskInfo],
        members: list[Member],
        seen: list[Hidden],
        *,
        out: AlignDirectory,
        continue_from: Path | None = None,
    ) -> None:
        self.run_config, self.config, self.seed = config, config.align, config.seed
        self.tasks, self.seen, self.out, self.continue_from = tasks, seen, out, continue_from
        self.teacher_sets = [
            TeacherSet.select(
                task,
                number,
                members,
                min_success=self.config.min_success,
                snapshots=self.config.snapshots,
            )
            for number, task in enumerate(tasks)
        ]
        self.average_drops: list[list[dict[str, Any]]] = []  # by task, then by pair of teachers

    def run(self) -> Figures:
        """Do the remaining rounds; returns the stage's figures. Raises NnitError on failure."""
        distill = self.config.distill
        self.teacher_sets = [self._of_one_mode(teachers) for teachers in self.teacher_sets]
        rounds = self._rounds()
        with StageProgress("") as view:
            view.add(BAR, distill.steps, steps_logged(self.out.metrics))
            for teachers in self.teacher_sets:
                self._ensure_teacher_rollouts(teachers, view)
            rounds.train(distill.steps, self._record(view), view)
        hypernet = rounds.model()
        for model in hypernet.each_task():
            model.current.success = self._measure(model)
        hypernet.save(self.out.hypernet)
        for model in hypernet.each_task():
            task = model.task.name
            data = DistillationData.load(self.out.states(task, distill.dagger_rounds))
            keep_for_refining(model, data, self.out.distillation_data(task))
        return self._figures(hypernet)

    def _rounds(self) -> DistillationRounds:
        return DistillationRounds(
            self.config.ghn,
            self.config.distill,
            self.tasks,
            [teachers.teachers for teachers in self.teacher_sets],
            TrainingDistribution(self.seen, self.run_config.topologies.variation),
            self.out,
            self.out,
            self.run_config.training,
            self.seed,
            self.continue_from,
        )

    def _figures(self, hypernet: HypernetModel) -> Figures:
        distill = self.config.distill
        pairs = zip(hypernet.tasks, self.teacher_sets, strict=True)
        return {
            "tasks": {
                known.task.name: self._task_figures(known, teachers) for known, teachers in pairs
            },
            "action_mse": read_metrics(self.out.metrics)[-1]["action_mse"],
            "steps": distill.steps,
            "teacher_episodes": sum(len(t.policies) for t in self.teacher_sets)
            * distill.teacher_episodes,
            "dagger_episodes": distill.dagger_rounds
            * distill.dagger_networks
            * distill.dagger_episodes,
            "parameters": hypernet.parameters,
        }

    def _task_figures(self, known: HypernetTask, teachers: TeacherSet) -> Figures:
        names = ["mixes of the best" if t.best else t.id for t in known.teachers]
        return {
            "teachers": {member.policy.id: member.success_once for member in teachers.best},
            "lost_by_averages": self.average_drops[teachers.number],
            "success_after": dict(zip(names, known.success.tolist(), strict=True)),
        }

    def _of_one_mode(self, teachers: TeacherSet) -> TeacherSet:
        """The teachers of the largest behavior mode; all of them if teachers are not mixed."""
        if self.config.distill.max_teachers_per_mix == 1:
            self.average_drops.append([])
            return teachers
        drops = measure_pairs(
            teachers.best,
            self.config.success_episodes,
            self.out.averages(teachers.task.name),
            self._evaluator(f"{teachers.task.name}, averages of two teachers"),
        )
        names = [member.policy.id for member in teachers.best]
        self.average_drops.append(
            [{"teachers": [names[i] for i in pair], "lost": drop} for pair, drop in drops.items()]
        )
        mode = largest_behavior_mode(len(names), drops, self.config.max_average_drop)
        return teachers.restricted_to(mode)

    def _ensure_teacher_rollouts(self, teachers: TeacherSet, view: StageProgress) -> None:
        """Record the states that the teachers visit, for the first round, unless they are saved."""
        path = self.out.states(teachers.task.name, 0)
        if path.exists():
            return
        jobs = [self._teacher_jobs(p, number) for number, p in enumerate(teachers.policies)]
        title = f"{teachers.task.name}, record teachers"
        flat = [job for teacher_jobs in jobs for job in teacher_jobs]
        states = iter(self._record(view)(teachers.task, flat, title))
        visited = [np.concatenate([next(states) for _ in teacher_jobs]) for teacher_jobs in jobs]
        norm = ObservationNormalizer.fit(np.concatenate(visited))
        data = DistillationData.of(norm, [norm.apply(obs) for obs in visited], teachers.policies)
        data.save(path)

    def _teacher_jobs(self, policy: Policy, teacher: int) -> list[Job]:
        """Recorded episodes of one teacher at several noise levels, a few seeds per job."""
        rng = numpy_stream("align.teacher-episodes", self.seed, teacher)
        first = int(rng.integers(TRAIN_SEEDS))
        episodes, jobs = self.config.distill.teacher_episodes, []
        for number, start in enumerate(range(0, episodes, EPISODES_A_JOB)):
            stop = min(start + EPISODES_A_JOB, episodes)
            noise = TEACHER_NOISE[number % len(TEACHER_NOISE)]
            seeds = tuple((first + k) % TRAIN_SEEDS for k in range(start, stop))
            jobs.append(Job(policy, seeds, noise, record=True))
        return jobs

    def _record(self, view: StageProgress) -> Record:
        def record_shown(task: TaskInfo, jobs: list[Job], title: str) -> list[np.ndarray]:
            view.add(title, total=sum(len(job.seeds) for job in jobs))
            ray = self.run_config.ray
            simulators = Simulators(task.name, task.control_mode, sim_backend=ray.sim_backend)

            def follow(done: int, seconds_left: float) -> None:
                view.update(title, done, seconds_left=seconds_left)

            return record(simulators, ray.actors, jobs, follow)

        return record_shown

    def _measure(self, model: HypernetModel) -> Tensor:
        """Mean success_once of networks that imitate each teacher, [teachers], on seen topologies.

        Networks of the best teachers imitate mixes of them, so all of these get the same mean.
        """
        topologies = spread(self.seen, SUCCESS_TOPOLOGIES)
        evaluator = self._evaluator(f"{model.task.name}, success after each teacher")
        result = evaluator.evaluate(
            [policy for hidden in topologies for policy in self._imitators(model, hidden)],
            self.config.success_episodes,
            self.out.success(model.task.name),
        )
        if result.failures:
            raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
        success = torch.tensor([row["success_once"] for row in result.rows()])
        success = success.view(len(topologies), len(model.current.teachers)).mean(0)
        best = model.current.best
        success[best] = success[best].mean()
        return success

    def _evaluator(self, title: str) -> Evaluator:
        """An evaluator that starts from the validation start states."""
        ray = self.run_config.ray
        return Evaluator(ray.actors, ray.sim_backend, VALIDATION_SEED, title)

    def _imitators(self, model: HypernetModel, hidden: Hidden) -> list[Policy]:
        """One network for each teacher; for each of the best, it imitates a mix of the best."""
        mixed, policies = iter(model.policies(hidden, len(model.current.best), self.seed)), []
        for number, teacher in enumerate(model.current.teachers):
            if teacher.best:
                policy = next(mixed)
            else:
                (policy,) = model.policies(hidden, 1, self.seed, model.single_teacher(number))
            policy.id = f"after_{number}_{policy.topology.name}"
            policies.append(policy)
        return policies
