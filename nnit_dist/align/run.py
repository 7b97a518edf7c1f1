"""The alignment stage: distil the teachers of all tasks into one hypernetwork, with DAgger.

Teachers of a task are those that do it in one way (`mixing.py`). Round 0 trains on states of their
noised rollouts; every later round adds states that generated networks visited.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnit_dist.align.distill import DistillConfig, distill_worker
from nnit_dist.align.faculty import Faculty
from nnit_dist.align.ghn import GHNConfig
from nnit_dist.align.latents import TeacherLatents
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.mixing import measure_pairs, one_mode
from nnit_dist.align.refine import lessons_file
from nnit_dist.align.sampler import AlignedSampler, build_ghn, save_samplers
from nnit_dist.align.turns import round_of
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED
from nnit_dist.envs.tasks import TaskInfo
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.pool import Failure, Job, SimulatorPool
from nnit_dist.evaluate.run import evaluate
from nnit_dist.evaluate.simulator import SimBackend, Simulators
from nnit_dist.normalization import InputNorm
from nnit_dist.policy import Policy
from nnit_dist.progress import StageProgress
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Hidden, spread
from nnit_dist.training import (
    METRICS,
    Placement,
    fit,
    load_state,
    read_metrics,
    steps_logged,
)
from nnit_dist.zoo import Member

MODEL = "ghn.safetensors"
BAR = "distil, steps"
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
        self.max_width = max(max(hidden) for hidden in seen)
        self.lost: list[list[dict[str, Any]]] = []  # by averages of two teachers, a task each

    def run(self) -> dict[str, Any]:
        """Every round that is left; returns the stage's figures. NnitError if training fails."""
        distill = self.config.distill
        rounds = distill.dagger_rounds + 1
        finished = [index for index in range(rounds) if self._result(index).exists()]
        self.faculties = [self._of_one_mode(faculty) for faculty in self.faculties]
        with StageProgress("") as view:
            view.add(BAR, distill.steps, steps_logged(self.out / METRICS))
            for index in range(max(finished, default=-1) + 1, rounds):
                for faculty in self.faculties:
                    self._ensure_states(index, faculty, view)
                self._train(index, distill.steps * (index + 1) // rounds, (view, BAR))
        samplers = self._samplers(rounds - 1)
        for sampler in samplers:
            sampler.success = self._measure(sampler)
        save_samplers(samplers, self.out / MODEL)
        for sampler, faculty in zip(samplers, self.faculties, strict=True):
            lessons = Lessons.load(self._states(rounds - 1, faculty))
            save_lessons(sampler, lessons, self.out)
        return self._figures(samplers)

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

    def _states(self, index: int, faculty: Faculty) -> Path:
        return self.out / f"states-{faculty.task.name}-{index}.safetensors"

    def _result(self, index: int) -> Path:
        return self.out / f"round-{index}.pt"

    def _ensure_states(self, index: int, faculty: Faculty, view: StageProgress) -> None:
        if self._states(index, faculty).exists():
            return
        if index == 0:
            jobs = [
                (i, job) for i in range(len(faculty.policies)) for job in self._lectures(faculty, i)
            ]
            collected = self._collect(faculty, jobs, view, "record teachers")
            norm = InputNorm.fit(np.concatenate(collected))
            obs = [norm.apply(states) for states in collected]
        else:
            before = Lessons.load(self._states(index - 1, faculty))
            norm, jobs = before.norm, self._dagger_jobs(index, faculty)
            collected = self._collect(faculty, jobs, view, f"DAgger round {index}")
            obs = [
                np.concatenate([old.numpy(), norm.apply(new)])
                for old, new in zip(before.obs, collected, strict=True)
            ]
        Lessons.of(norm, obs, faculty.policies).save(self._states(index, faculty))

    def _lectures(self, faculty: Faculty, teacher: int) -> list[Job]:
        """Recorded episodes of one teacher at several noise levels, a few seeds a job."""
        first = self.seed * 100_000 + teacher * 1_000
        jobs = []
        for start in range(0, self.config.distill.teacher_episodes, 4):
            stop = min(start + 4, self.config.distill.teacher_episodes)
            noise = TEACHER_NOISE[(start // 4) % len(TEACHER_NOISE)]
            seeds = tuple((first + k) % TRAIN_SEEDS for k in range(start, stop))
            jobs.append(Job(faculty.policies[teacher], seeds, noise, record=True))
        return jobs

    def _dagger_jobs(self, index: int, faculty: Faculty) -> list[tuple[int, Job]]:
        """Generated networks near random seen topologies, by the teacher they are most after.

        Every other one has the noise on its weights that training has.
        """
        distill, sampler = self.config.distill, self._samplers(index - 1)[faculty.number]
        turns = round_of([faculty.task.name for faculty in self.faculties], distill.turns)
        jobs: list[tuple[int, Job]] = []
        for number in range(distill.dagger_networks):
            if turns[number % len(turns)] != faculty.number:
                continue
            rng = generator_of(self.seed + 1, index, number)
            hidden = self.seen[int(torch.randint(len(self.seen), (), generator=rng))]
            topology = sampler.vary(hidden, rng)
            (mix,) = sampler.mixes(1, distill.best_share, rng)
            seed = int(torch.randint(2**31, (), generator=rng))
            (policy,) = sampler.policies(topology.hidden, 1, seed, mix)
            if len(jobs) % 2:
                policy = noised(policy, sampler.norm, distill.weight_noise, rng)
            policy.id = f"dagger_{index}_{number}"
            last = TRAIN_SEEDS - distill.dagger_episodes
            start = int(torch.randint(last, (), generator=rng))
            seeds = tuple(range(start, start + distill.dagger_episodes))
            jobs.append((int(mix.argmax()), Job(policy, seeds, record=True)))
        return jobs

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

    def _collect(
        self, faculty: Faculty, jobs: list[tuple[int, Job]], view: StageProgress, name: str
    ) -> list[np.ndarray]:
        """Visited observations per teacher, in the order of the jobs whoever ran them first."""
        task, name = faculty.task, f"{faculty.task.name}, {name}"
        episodes = sum(len(job.seeds) for _, job in jobs)
        view.add(name, total=episodes)
        states: dict[tuple[Job, int], np.ndarray] = {}
        simulators = Simulators(task.name, task.control_mode, sim_backend=self.sim_backend)
        with SimulatorPool(simulators, self.actors) as pool:
            for outcome in pool.run([job for _, job in jobs]):
                if isinstance(outcome, Failure):
                    raise NnitError(f"recording states failed: {outcome.reason}.")
                job, rollouts = outcome
                assert rollouts.observations is not None
                recorded = zip(rollouts.seeds, rollouts.observations, strict=True)
                states |= {(job, seed): observations for seed, observations in recorded}
                left = pool.seconds_left(episodes - len(states))
                view.update(name, len(states), seconds_left=left)
        empty = np.zeros((0, task.obs_dim), np.float32)
        grouped: list[list[np.ndarray]] = [[empty] for _ in faculty.policies]
        for teacher, job in jobs:
            grouped[teacher] += [states[job, seed] for seed in job.seeds]
        return [np.concatenate(parts) for parts in grouped]

    def _train(self, index: int, until: int, view: tuple[StageProgress, str]) -> None:
        known = self.continue_from
        fit(
            distill_worker,
            {
                "distill": self.config.distill.model_dump(),
                "ghn": self.config.ghn.model_dump(),
                "topologies": json.dumps(self.seen),
                "variation": self.variation,
                "max_width": self.max_width,
                "tasks": [
                    {
                        "task": faculty.task.name,
                        "states": str(self._states(index, faculty).absolute()),
                        "teachers": [(teacher.id, teacher.best) for teacher in faculty.about],
                    }
                    for faculty in self.faculties
                ],
                "continue_from": str(known.absolute()) if known else None,
                "start_from": str(self._result(index - 1).absolute()) if index else None,
                "result": str(self._result(index).absolute()),
                "until": until,
                "seed": self.seed,
            },
            self.out,
            f"round-{index}",
            view,
            self.placement,
        )

    def _samplers(self, index: int) -> list[AlignedSampler]:
        """One a task, of what a round has trained; success is measured at the end."""
        saved = load_state(self._result(index))
        config = self.config.ghn
        ghn = build_ghn(config, self.tasks, self.max_width)
        ghn.load_state_dict(saved["ghn"])
        latents = nn.ModuleList(
            TeacherLatents(len(faculty.about), config.latent_dim) for faculty in self.faculties
        )
        latents.load_state_dict(saved["latents"])
        return [
            AlignedSampler(
                ghn.eval(),
                own.eval(),  # type: ignore[arg-type]  # a ModuleList of these
                Lessons.load(self._states(index, faculty)).norm,
                faculty.task,
                self.max_width,
                self.seen,
                self.variation,
                self.config.distill.blended,
                faculty.about,
                torch.zeros(len(faculty.about)),
                faculty.number,
            )
            for faculty, own in zip(self.faculties, latents, strict=True)
        ]
