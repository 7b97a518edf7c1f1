"""The alignment stage: distil the teachers into one hypernetwork, with DAgger.

Round 0 trains on states of the teachers' noised rollouts; every later round adds
states that generated networks visited.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nnit_dist.align.distill import DistillConfig, distill_worker
from nnit_dist.align.ghn import GHN, GHNConfig
from nnit_dist.align.latents import TeacherLatents
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.sampler import AlignedSampler, Teacher
from nnit_dist.envs.sim import TRAIN_SEEDS, VALIDATION_SEED
from nnit_dist.envs.tasks import TaskInfo
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.pool import Failure, Job, SimulatorPool
from nnit_dist.evaluate.run import evaluate
from nnit_dist.evaluate.simulator import SimBackend, Simulators
from nnit_dist.normalization import InputNorm
from nnit_dist.progress import StageProgress
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Hidden, spread
from nnit_dist.training import METRICS, fit, read_metrics, steps_logged
from nnit_dist.zoo import Member, best_of_trials

MODEL = "ghn.safetensors"
BAR = "distil, steps"
TEACHER_NOISE = (0.0, 0.1, 0.3)
SUCCESS_TOPOLOGIES = 4  # success after a teacher hardly differs from topology to topology


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
        100, gt=0, description="at the end, of networks of some topologies after every teacher"
    )
    ghn: GHNConfig = GHNConfig()
    distill: DistillConfig = DistillConfig()


class Placement(BaseModel):
    """Where training runs: workers of Ray Train and what each of them gets."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(1, gt=0)
    gpu: bool = Field(False, description="one GPU a worker")
    cpus: int = Field(2, gt=0, description="CPUs a worker")


class Alignment:
    """Trains the hypernetwork on the `seen` topologies, their widths varied by up to `variation`.

    Reads the teachers among `members`. Writes `out/ghn.safetensors`, `out/metrics.jsonl`, and a
    file of states and one of the trainer's state per round, from which it resumes, and
    `out/success`, the measured episodes of its networks.

    Raises:
        NnitError: no teacher is good enough.
    """

    def __init__(
        self,
        config: AlignConfig,
        members: list[Member],
        task: TaskInfo,
        seen: list[Hidden],
        variation: int,
        out: Path,
        placement: Placement,
        seed: int,
        actors: int | None,
        sim_backend: SimBackend = "auto",
    ) -> None:
        self.config, self.task, self.seen, self.variation = config, task, seen, variation
        self.out, self.placement, self.seed, self.actors = out, placement, seed, actors
        self.simulators = Simulators(task.name, task.control_mode, sim_backend=sim_backend)
        self.taught = _good_enough(members, config.min_success)
        earlier = _earlier(self.taught, members, config.snapshots)
        self.teachers = [member.policy for member in [*self.taught, *earlier]]
        self.about = [Teacher(t.id, i < len(self.taught)) for i, t in enumerate(self.teachers)]
        self.max_width = max(max(hidden) for hidden in seen)

    def run(self) -> dict[str, Any]:
        """Every round that is left; returns the stage's figures. NnitError if training fails."""
        distill = self.config.distill
        rounds = distill.dagger_rounds + 1
        with StageProgress("") as view:
            view.add(BAR, distill.steps, steps_logged(self.out / METRICS))
            for index in range(rounds):
                self._ensure_states(index, view)
                if not self._result(index).exists():
                    self._train(index, distill.steps * (index + 1) // rounds, (view, BAR))
        sampler = self._sampler(rounds - 1)
        sampler.success = self._measure(sampler)
        sampler.save(self.out / MODEL)
        return self._figures(sampler)

    def _figures(self, sampler: AlignedSampler) -> dict[str, Any]:
        distill = self.config.distill
        measured = zip(self.about, sampler.success.tolist(), strict=True)
        after = {
            "mixes of the best" if teacher.best else teacher.id: success
            for teacher, success in measured
        }
        return {
            "teachers": {member.policy.id: member.success_once for member in self.taught},
            "success_after": after,
            "action_mse": read_metrics(self.out / METRICS)[-1]["action_mse"],
            "steps": distill.steps,
            "teacher_episodes": len(self.teachers) * distill.teacher_episodes,
            "dagger_episodes": distill.dagger_rounds
            * distill.dagger_networks
            * distill.dagger_episodes,
            "parameters": sum(p.numel() for p in sampler.ghn.parameters()),
        }

    def _states(self, index: int) -> Path:
        return self.out / f"states-{index}.safetensors"

    def _result(self, index: int) -> Path:
        return self.out / f"round-{index}.pt"

    def _ensure_states(self, index: int, view: StageProgress) -> None:
        if self._states(index).exists():
            return
        if index == 0:
            jobs = [(i, job) for i in range(len(self.teachers)) for job in self._teacher_jobs(i)]
            collected = self._collect(jobs, view, "record teachers")
            norm = InputNorm.fit(np.concatenate(collected))
            obs = [norm.apply(states) for states in collected]
        else:
            before = Lessons.load(self._states(index - 1))
            norm = before.norm
            collected = self._collect(self._dagger_jobs(index), view, f"DAgger round {index}")
            obs = [
                np.concatenate([old.numpy(), norm.apply(new)])
                for old, new in zip(before.obs, collected, strict=True)
            ]
        Lessons.of(norm, obs, self.teachers).save(self._states(index))

    def _teacher_jobs(self, teacher: int) -> list[Job]:
        """Recorded episodes of one teacher at several noise levels, a few seeds a job."""
        first = self.seed * 100_000 + teacher * 1_000
        jobs = []
        for start in range(0, self.config.distill.teacher_episodes, 4):
            stop = min(start + 4, self.config.distill.teacher_episodes)
            noise = TEACHER_NOISE[(start // 4) % len(TEACHER_NOISE)]
            seeds = tuple((first + k) % TRAIN_SEEDS for k in range(start, stop))
            jobs.append(Job(self.teachers[teacher], seeds, noise, record=True))
        return jobs

    def _dagger_jobs(self, index: int) -> list[tuple[int, Job]]:
        """Generated networks near random seen topologies, by the teacher they are most after."""
        distill, sampler = self.config.distill, self._sampler(index - 1)
        rng = np.random.default_rng((self.seed, index))
        jobs = []
        for number in range(distill.dagger_networks):
            hidden = self.seen[int(rng.integers(len(self.seen)))]
            topology = sampler.vary(hidden, generator_of(self.seed, index, number))
            mix = self._dagger_mix(sampler, index, number)
            (policy,) = sampler.policies(topology.hidden, 1, int(rng.integers(2**31)), mix)
            policy.id = f"dagger_{index}_{number}"
            start = int(rng.integers(TRAIN_SEEDS - distill.dagger_episodes))
            seeds = tuple(range(start, start + distill.dagger_episodes))
            jobs.append((int(mix.argmax()), Job(policy, seeds, record=True)))
        return jobs

    def _dagger_mix(self, sampler: AlignedSampler, index: int, number: int) -> Tensor:
        """Mixes of the best ones and the others take turns."""
        others = [i for i, teacher in enumerate(self.about) if not teacher.best]
        if others and number % 2:
            return sampler.pure(others[number // 2 % len(others)])
        return sampler.mixes(1, 1.0, generator_of(self.seed, index, number, 1))[0]

    def _measure(self, sampler: AlignedSampler) -> Tensor:
        """Success of networks after every teacher, [teachers], over several seen topologies.

        Networks after the best are after mixes of them, and count alike: their mean.
        """
        policies = []
        hiddens = spread(self.seen, SUCCESS_TOPOLOGIES)
        for hidden in hiddens:
            mixed = iter(sampler.policies(hidden, len(sampler.best), self.seed))
            for number, teacher in enumerate(self.about):
                if teacher.best:
                    policy = next(mixed)
                else:
                    (policy,) = sampler.policies(hidden, 1, self.seed, sampler.pure(number))
                policy.id = f"after_{number}_{policy.topology.name}"
                policies.append(policy)
        result = evaluate(
            policies,
            self.config.success_episodes,
            self.out / "success",
            self.actors,
            sim_backend=self.simulators.sim_backend,
            first_seed=VALIDATION_SEED,
            title="success after each teacher",
        )
        if result.failures:
            raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
        success = torch.tensor([row["success_once"] for row in result.rows()])
        success = success.view(len(hiddens), len(self.about)).mean(0)
        success[sampler.best] = success[sampler.best].mean()
        return success

    def _collect(
        self, jobs: list[tuple[int, Job]], view: StageProgress, name: str
    ) -> list[np.ndarray]:
        """Visited observations per teacher, in the order of the jobs whoever ran them first."""
        episodes = sum(len(job.seeds) for _, job in jobs)
        view.add(name, total=episodes)
        states: dict[tuple[Job, int], np.ndarray] = {}
        with SimulatorPool(self.simulators, self.actors) as pool:
            for outcome in pool.run([job for _, job in jobs]):
                if isinstance(outcome, Failure):
                    raise NnitError(f"recording states failed: {outcome.reason}.")
                job, rollouts = outcome
                assert rollouts.observations is not None
                recorded = zip(rollouts.seeds, rollouts.observations, strict=True)
                states |= {(job, seed): observations for seed, observations in recorded}
                left = pool.seconds_left(episodes - len(states))
                view.update(name, len(states), seconds_left=left)
        empty = np.zeros((0, self.task.obs_dim), np.float32)
        grouped: list[list[np.ndarray]] = [[empty] for _ in self.teachers]
        for teacher, job in jobs:
            grouped[teacher] += [states[job, seed] for seed in job.seeds]
        return [np.concatenate(parts) for parts in grouped]

    def _train(self, index: int, until: int, view: tuple[StageProgress, str]) -> None:
        fit(
            distill_worker,
            {
                "distill": self.config.distill.model_dump(),
                "ghn": self.config.ghn.model_dump(),
                "topologies": json.dumps(self.seen),
                "variation": self.variation,
                "max_width": self.max_width,
                "states": str(self._states(index).absolute()),
                "start_from": str(self._result(index - 1).absolute()) if index else None,
                "result": str(self._result(index).absolute()),
                "best": [teacher.best for teacher in self.about],
                "until": until,
                "seed": self.seed,
            },
            self.out,
            f"round-{index}",
            view,
            self.placement.workers,
            self.placement.gpu,
            self.placement.cpus,
        )

    def _sampler(self, index: int) -> AlignedSampler:
        saved = torch.load(self._result(index), weights_only=True, map_location="cpu")
        ghn = GHN(self.config.ghn, self.task.obs_dim, self.task.act_dim, self.max_width)
        ghn.load_state_dict(saved["ghn"])
        latents = TeacherLatents(len(self.teachers), self.config.ghn.latent_dim)
        latents.load_state_dict(saved["latents"])
        return AlignedSampler(
            ghn.eval(),
            latents.eval(),
            Lessons.load(self._states(0)).norm,
            self.task,
            self.max_width,
            self.seen,
            self.variation,
            self.config.distill.blended,
            self.about,
            torch.zeros(len(self.about)),  # measured at the end
        )


def _good_enough(members: list[Member], min_success: float) -> list[Member]:
    """The best snapshot of every trial that reaches `min_success`."""
    best = best_of_trials(members)
    if taught := [member for member in best if member.success_once >= min_success]:
        return taught
    most = max((member.success_once for member in members), default=0.0)
    raise NnitError(
        f"no policy of the population reaches align.min_success={min_success} (best {most:.2f}). "
        "Raise population.recipe.env_steps or lower align.min_success."
    )


def _earlier(taught: list[Member], members: list[Member], count: int) -> list[Member]:
    """Up to `count` earlier snapshots of the trial of each, evenly over its training."""
    found = []
    for best in taught:
        own = [m for m in members if m.parent == best.parent and m.env_steps < best.env_steps]
        found += spread(sorted(own, key=lambda member: member.env_steps), count)
    return found
