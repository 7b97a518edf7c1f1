"""Training of the graph hypernetwork: one worker of Ray Train.

Each step draws topologies and mixes of teachers, number i of them from (seed, step, i), so that
it does not matter over how many workers they are spread. Tasks take turns. The generated network
must act as its teachers do on average, on states that teachers and generated networks visited.
Gaussian noise on the generated weights during training makes the function flat around them, so that
the small errors of a generative model cost little success. Widths are varied, and the sizes and the
depth that the hypernetwork is told are jittered (`told.py`).

What is random is drawn ahead of a step, in processes of its own if a worker has some
(`training.py`); the step itself is a few large operations.

Shapes: B networks, T teachers of all tasks, S states, L layers at most, W units at most.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.align.ghn import GHN, GHNConfig, Layers, Plan
from nnit_dist.align.grow import grow
from nnit_dist.align.latents import TeacherLatents, action_error, draw_mixes, sample_latents
from nnit_dist.align.lessons import Lessons, draw_states
from nnit_dist.align.padded import Padded
from nnit_dist.align.sampler import AlignedSampler, load_samplers
from nnit_dist.align.told import Told, jitter, vary
from nnit_dist.align.turns import Turns, round_of
from nnit_dist.errors import NnitError
from nnit_dist.randomness import generator_of
from nnit_dist.storage import path_of
from nnit_dist.topology import Hidden, Topology
from nnit_dist.training import Loop, average_gradients, restore_state, save_state, worker_setup


class DistillConfig(BaseModel):
    """How the hypernetwork is trained."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(4000, gt=0, description="optimiser steps over all rounds")
    dagger_rounds: int = Field(3, ge=0, description="rounds of rollouts of generated networks")
    teacher_episodes: int = Field(40, gt=0, description="recorded episodes of each teacher")
    dagger_networks: int = Field(24, gt=0, description="generated networks rolled out a round")
    dagger_episodes: int = Field(4, gt=0, description="episodes of each of them")
    meta_batch: int = Field(8, gt=0, description="topologies a step, over all workers")
    turns: Turns = {}
    latents: int = Field(2, gt=0, description="networks of each topology a step")
    best_share: float = Field(
        0.5, ge=0, le=1, description="of networks after trials' best snapshots, if others teach"
    )
    blended: int = Field(
        4, gt=0, description="best snapshots that a network is after at once, mixed at random"
    )
    states: int = Field(256, gt=0, description="states a network is compared on")
    lr: float = Field(2e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    weight_noise: float = Field(0.05, ge=0, description="noise on weights, in their rms")
    width_jitter: float = Field(
        3.0, ge=0, description="error, in units, of the widths that the hypernetwork is told"
    )
    depth_jitter: float = Field(
        1.0, ge=0, description="error, in layers, of the depth that the hypernetwork is told"
    )
    kl_weight: float = Field(1e-4, ge=0, description="of the latents' divergence from N(0, 1)")
    smoothness_weight: float = Field(0.0, ge=0, description="penalty on neighbours' differences")
    checkpoint_every: int = Field(250, gt=0, description="steps")


def distill_worker(config: dict) -> None:
    """Ray Train loop: continue training up to `config["until"]` steps."""
    device, rank, workers = worker_setup()
    trainer = Distiller(config, device, (rank, workers))
    start, known = config.get("start_from"), config.get("continue_from")
    loop = Loop(trainer.state(), config, log_every=25, save_every=trainer.config.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = restore_state(trainer.state(), path_of(start))
    elif loop.start == 0 and known:
        trainer.take_over(load_samplers(path_of(known)))
    loop.run(config["until"], trainer.prepare, trainer.descend)
    if rank == 0:
        save_state(trainer.state(), config["until"], path_of(config["result"]))


@dataclass(frozen=True)
class Course:
    """One task: its teachers (by id), which are the best (bool [T]), and topologies.

    Its teachers and their states follow those of the tasks before: `first_teacher` and
    `first_state` are theirs among all, and `states` counts each teacher's own.
    """

    task: str
    teachers: list[str]
    best: Tensor
    topologies: list[Topology]
    states: Tensor
    first_teacher: int
    first_state: int

    def draw_states(self, mixes: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Indices int64 [B, count] of states, each a teacher's by its share in mixes [B, own T]."""
        first = self.first_state + self.states.cumsum(0) - self.states
        owners, places = draw_states(mixes, self.states, count, rng)
        return first[owners] + places


@dataclass
class Batch:
    """What a worker needs for a step: the networks, what they are after and where they must act.

    `mixes` float32 [B, T], `latent_noise` [B, latent_dim], `states` int64 [B, S] of all states;
    `noise` standard normal, weights and biases as `Padded` has them.
    """

    plan: Plan
    mixes: Tensor
    latent_noise: Tensor
    states: Tensor
    noise: tuple[Tensor, Tensor]

    def to(self, device: torch.device) -> "Batch":
        mixes, latent_noise, states, *noise = (
            x.to(device) for x in (self.mixes, self.latent_noise, self.states, *self.noise)
        )
        return Batch(self.plan.to(device), mixes, latent_noise, states, (noise[0], noise[1]))


class Distiller:
    """GHN, latents and optimiser, with one training step.

    `share` is (rank, workers): which of a step's topologies are this worker's.
    """

    def __init__(self, config: dict, device: torch.device, share: tuple[int, int] = (0, 1)) -> None:
        self.config = DistillConfig(**config["distill"])
        self.device, self.seed, self.share = device, config["seed"], share
        torch.manual_seed(self.seed)
        self.variation, self.max_width = config["variation"], config["max_width"]
        lessons = [Lessons.load(path_of(about["states"])) for about in config["tasks"]]
        self.obs_dim = max(lesson.obs_dim for lesson in lessons)
        self.act_dim = max(lesson.act_dim for lesson in lessons)
        self.courses = _courses(config["tasks"], lessons, json.loads(config["topologies"]))
        self.round = round_of([course.task for course in self.courses], self.config.turns)
        padding = [self.obs_dim - lesson.obs_dim for lesson in lessons]
        self.states = torch.cat(
            [
                F.pad(torch.cat(lesson.obs), (0, zeros))
                for lesson, zeros in zip(lessons, padding, strict=True)
            ]
        ).to(device)
        self.teachers = Padded.of([t for lesson in lessons for t in lesson.teachers]).to(device)
        ghn_config, tasks = GHNConfig(**config["ghn"]), len(self.courses)
        self.ghn = GHN(ghn_config, self.obs_dim, self.act_dim, self.max_width, tasks).to(device)
        self.latents = nn.ModuleList(
            TeacherLatents(len(course.best), ghn_config.latent_dim) for course in self.courses
        ).to(device)
        self.parameters = [*self.ghn.parameters(), *self.latents.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def state(self) -> dict:
        return {"ghn": self.ghn, "latents": self.latents, "optimizer": self.optimizer}

    def step(self, step: int) -> dict[str, float]:
        """Take step number `step`; returns the mean losses."""
        return self.descend(step, self.prepare(step))

    def prepare(self, step: int) -> Batch:
        """Draw this worker's share of step number `step`; on the CPU, whatever the device."""
        cfg, (rank, workers) = self.config, self.share
        numbers = range(rank, cfg.meta_batch, workers)
        tasks = [self.round[(step + number) % len(self.round)] for number in numbers]
        drawn = [
            self._draw(self.courses[task], generator_of(self.seed, step, number))
            for task, number in zip(tasks, numbers, strict=True)
        ]
        topologies, told = [one.topology for one in drawn], [one.told for one in drawn]
        plan = self.ghn.plan(topologies, told, tasks, [cfg.latents] * len(drawn))
        size, length = self.ghn.size, plan.shapes.shape[1]
        weights = torch.zeros(len(drawn), cfg.latents, length, size, size)
        biases = torch.zeros(len(drawn), cfg.latents, length, size)
        mixes = torch.zeros(len(drawn), cfg.latents, len(self.teachers.weights))
        for row, (one, task) in enumerate(zip(drawn, tasks, strict=True)):
            first = self.courses[task].first_teacher
            mixes[row, :, first : first + one.mixes.shape[1]] = one.mixes
            for layer, (weight, bias) in enumerate(one.noise):
                _, out, fan_in = weight.shape
                weights[row, :, layer, :out, :fan_in] = weight
                biases[row, :, layer, :out] = bias
        return Batch(
            plan,
            mixes.flatten(0, 1),
            torch.cat([one.latent_noise for one in drawn]),
            torch.cat([one.states for one in drawn]),
            (weights.flatten(0, 1), biases.flatten(0, 1)),
        )

    def _draw(self, course: Course, rng: torch.Generator) -> "_Drawn":
        cfg, dim = self.config, self.ghn.config.latent_dim
        picked = int(torch.randint(len(course.topologies), (), generator=rng))
        topology = vary(course.topologies[picked], self.variation, self.max_width, rng)
        mixes = draw_mixes(course.best, cfg.latents, cfg.best_share, cfg.blended, rng)
        return _Drawn(
            topology,
            mixes,
            torch.randn(cfg.latents, dim, generator=rng),
            jitter(topology, cfg.width_jitter, cfg.depth_jitter, rng),
            course.draw_states(mixes, cfg.states, rng),
            [
                (
                    torch.randn(cfg.latents, out, fan_in, generator=rng),
                    torch.randn(cfg.latents, out, generator=rng),
                )
                for out, fan_in in (topology.shapes if cfg.weight_noise else [])
            ],
        )

    def descend(self, step: int, batch: Batch) -> dict[str, float]:
        """Take step number `step` with its prepared batch; returns the mean losses."""
        cfg, batch = self.config, batch.to(self.device)
        self._set_lr(step)
        networks = self._written(batch)
        obs = self.states[batch.states]
        target = self._targets(batch.mixes, obs)
        output = networks.noised(cfg.weight_noise, *batch.noise).apply(obs, self.act_dim)
        own = networks.shapes[torch.arange(len(obs), device=obs.device), networks.last, 0]
        errors = action_error(output, target).mean(1).sum(1) / own  # actions it lacks are zero
        weight = self.share[1] / (cfg.meta_batch * cfg.latents)  # gradients are averaged
        error = weight * errors.sum()
        loss = error + cfg.kl_weight * self._kl()
        if cfg.smoothness_weight:
            loss = loss + cfg.smoothness_weight * weight * networks.neighbour_difference().sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # The error travels with the gradients, so that every worker reports that of all.
        meter = nn.Parameter(error.detach()[None])
        meter.grad = error.detach()[None]
        average_gradients([*self.parameters, meter])
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {"action_mse": float(meter.grad), "kl": float(self._kl().detach())}

    def _written(self, batch: Batch) -> Padded:
        latents = [self.latents_of(task) for task in range(len(self.courses))]
        mean, log_std = (
            torch.cat([getattr(own, n) for own in latents]) for n in ("mean", "log_std")
        )
        z = sample_latents(batch.mixes, mean, log_std, batch.latent_noise)
        return Padded(*self.ghn.write(batch.plan, z), batch.plan.shapes)

    @torch.no_grad()
    def _targets(self, mixes: Tensor, obs: Tensor) -> Tensor:
        """What the teachers of each mix do on average, in [-1, 1]: [B, S, act_dim]."""
        networks, teachers = mixes.nonzero(as_tuple=True)
        actions = self.teachers.pick(teachers).apply(obs[networks], self.act_dim).clamp(-1, 1)
        shares = mixes[networks, teachers][:, None, None]
        return obs.new_zeros(*obs.shape[:2], self.act_dim).index_add(0, networks, shares * actions)

    @torch.no_grad()
    def take_over(self, samplers: list[AlignedSampler]) -> None:
        """Begin with what is known: these tasks come first, further ones are new.

        Raises:
            NnitError: the hypernetworks differ in more than their tasks.
        """
        names = [sampler.task.name for sampler in samplers]
        if [course.task for course in self.courses][: len(names)] != names:
            raise NnitError(
                f"the run to continue from has the tasks {', '.join(names)}. Name them first and "
                "in this order, and new ones after them."
            )
        grow(self.ghn, samplers[0].ghn)
        for task, sampler in enumerate(samplers):
            places = {teacher.id: i for i, teacher in enumerate(sampler.teachers)}
            latents = self.latents_of(task)
            for i, teacher in enumerate(self.courses[task].teachers):
                if teacher in places:
                    latents.mean[i] = sampler.latents.mean[places[teacher]]
                    latents.log_std[i] = sampler.latents.log_std[places[teacher]]

    def _kl(self) -> Tensor:
        tasks = range(len(self.courses))
        return torch.stack([self.latents_of(task).kl() for task in tasks]).mean()

    def latents_of(self, task: int) -> TeacherLatents:
        """The latents of a task's teachers."""
        latents = self.latents[task]
        assert isinstance(latents, TeacherLatents)
        return latents

    def _set_lr(self, step: int) -> None:
        warmup = min(1.0, (step + 1) / 100)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.config.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warmup * max(0.02, decay)


@dataclass(frozen=True)
class _Drawn:
    """Networks of one topology, `latents` of them; noise as layers, [latents, out, in]."""

    topology: Topology
    mixes: Tensor
    latent_noise: Tensor
    told: Told
    states: Tensor
    noise: Layers


def _courses(
    tasks: list[dict[str, Any]], lessons: list[Lessons], hidden: list[Hidden]
) -> list[Course]:
    courses: list[Course] = []
    teachers = states = 0
    for about, lesson in zip(tasks, lessons, strict=True):
        ids, best = zip(*about["teachers"], strict=True)
        counts = torch.tensor([len(obs) for obs in lesson.obs])
        courses.append(
            Course(
                about["task"],
                list(ids),
                torch.tensor(best),
                [Topology(lesson.obs_dim, tuple(h), lesson.act_dim) for h in hidden],
                counts,
                teachers,
                states,
            )
        )
        teachers, states = teachers + len(ids), states + int(counts.sum())
    return courses
