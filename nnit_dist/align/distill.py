"""Training of the graph hypernetwork: one worker of Ray Train.

Each step draws topologies and mixes of teachers, number i of them from (seed, step, i), so that
it does not matter over how many workers they are spread. Tasks take turns. The generated network
must act as its teachers do on average, on states that teachers and generated networks visited.
Gaussian noise on the generated weights during training makes the function flat around them, so that
the small errors of a generative model cost little success. Widths are varied, and the sizes and the
depth that the hypernetwork is told are jittered (`told.py`).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnit_dist.align.ghn import GHN, GHNConfig, Layers, apply_layers
from nnit_dist.align.grow import grow
from nnit_dist.align.latents import TeacherLatents, action_error, draw_mixes
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.sampler import AlignedSampler, load_samplers
from nnit_dist.align.told import jitter, vary
from nnit_dist.artifacts import write_atomic
from nnit_dist.errors import NnitError
from nnit_dist.randomness import generator_of
from nnit_dist.storage import path_of
from nnit_dist.topology import Hidden, Topology
from nnit_dist.training import Loop, average_gradients, load_state, worker_setup


class DistillConfig(BaseModel):
    """How the hypernetwork is trained."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(4000, gt=0, description="optimiser steps over all rounds")
    dagger_rounds: int = Field(3, ge=0, description="rounds of rollouts of generated networks")
    teacher_episodes: int = Field(40, gt=0, description="recorded episodes of each teacher")
    dagger_networks: int = Field(24, gt=0, description="generated networks rolled out a round")
    dagger_episodes: int = Field(4, gt=0, description="episodes of each of them")
    meta_batch: int = Field(8, gt=0, description="topologies a step, over all workers")
    latents: int = Field(2, gt=0, description="networks of each topology a step")
    best_share: float = Field(
        0.5, ge=0, le=1, description="of networks after trials' best snapshots, if others teach"
    )
    blended: int = Field(
        4, gt=0, description="best snapshots that a network is after at once, mixed at random"
    )
    states: int = Field(256, gt=0, description="states a network is compared on")
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    weight_noise: float = Field(0.05, ge=0, description="noise on weights, in their rms")
    width_jitter: float = Field(
        3.0, ge=0, description="error, in units, of the widths that the hypernetwork is told"
    )
    depth_jitter: float = Field(
        1.0, ge=0, description="error, in layers, of the depth that the hypernetwork is told"
    )
    kl_weight: float = Field(1e-4, ge=0)
    smoothness_weight: float = Field(0.0, ge=0, description="penalty on neighbours' differences")
    checkpoint_every: int = Field(250, gt=0)


def distill_worker(config: dict) -> None:
    """Ray Train loop: continue training up to `config["until"]` steps."""
    device, rank, workers = worker_setup()
    trainer = Distiller(config, device, (rank, workers))
    start, known = config.get("start_from"), config.get("continue_from")
    loop = Loop(trainer.state(), config, log_every=25, save_every=trainer.config.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = trainer.load(path_of(start))
    elif loop.start == 0 and known:
        trainer.take_over(load_samplers(path_of(known)))
    loop.run(config["until"], trainer.step)
    if rank == 0:
        trainer.save(path_of(config["result"]), config["until"])


@dataclass(frozen=True)
class Course:
    """One task: what its teachers (by id) teach, which are the best (bool [T]), and topologies.

    Both teachers of a pair in `unmixable` are never taught at once.
    """

    task: str
    lessons: Lessons
    teachers: list[str]
    best: Tensor
    topologies: list[Topology]
    unmixable: list[tuple[int, int]]

    @classmethod
    def of(cls, about: dict[str, Any], hidden: list[Hidden], device: torch.device) -> "Course":
        lessons = Lessons.load(path_of(about["states"])).to(device)
        topologies = [Topology(lessons.obs_dim, tuple(h), lessons.act_dim) for h in hidden]
        ids, best = zip(*about["teachers"], strict=True)
        pairs = [(i, j) for i, j in about.get("unmixable", [])]
        return cls(about["task"], lessons, list(ids), torch.tensor(best), topologies, pairs)


class Distiller:
    """GHN, latents and optimiser, with one training step.

    `share` is (rank, workers): which of a step's topologies are this worker's.
    """

    def __init__(self, config: dict, device: torch.device, share: tuple[int, int] = (0, 1)) -> None:
        self.config = DistillConfig(**config["distill"])
        self.device, self.seed, self.share = device, config["seed"], share
        torch.manual_seed(self.seed)
        hidden = json.loads(config["topologies"])
        self.courses = [Course.of(about, hidden, device) for about in config["tasks"]]
        self.variation, self.max_width = config["variation"], config["max_width"]
        ghn_config = GHNConfig(**config["ghn"])
        obs_dim, act_dim = (
            max(getattr(course.lessons, size) for course in self.courses)
            for size in ("obs_dim", "act_dim")
        )
        self.ghn = GHN(ghn_config, obs_dim, act_dim, self.max_width, len(self.courses)).to(device)
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
        cfg, (rank, workers) = self.config, self.share
        self._set_lr(step)
        numbers = range(rank, cfg.meta_batch, workers)
        rngs = [generator_of(self.seed, step, number) for number in numbers]
        tasks = [(step + number) % len(self.courses) for number in numbers]
        courses = [self.courses[task] for task in tasks]
        topologies = [self._draw_topology(c, rng) for c, rng in zip(courses, rngs, strict=True)]
        mixes = [
            draw_mixes(course.best, cfg.latents, cfg.best_share, cfg.blended, rng, course.unmixable)
            for course, rng in zip(courses, rngs, strict=True)
        ]
        z = [self._draw_latents(*drawn) for drawn in zip(tasks, mixes, rngs, strict=True)]
        told = [
            jitter(topology, cfg.width_jitter, cfg.depth_jitter, rng)
            for topology, rng in zip(topologies, rngs, strict=True)
        ]
        networks = self.ghn(list(zip(topologies, z, strict=True)), told, tasks)
        errors, roughness = [], []
        for course, layers, mix, rng in zip(courses, networks, mixes, rngs, strict=True):
            obs, target = course.lessons.draw(mix, cfg.states, rng)
            noisy = add_weight_noise(layers, cfg.weight_noise, rng)
            errors.append(action_error(apply_layers(noisy, obs), target).mean())
            if cfg.smoothness_weight:
                roughness.append(neighbour_difference(layers))
        weight = workers / cfg.meta_batch  # of a topology: gradients are averaged over workers
        error = weight * torch.stack(errors).sum()
        loss = error + cfg.kl_weight * self._kl()
        if roughness:
            loss = loss + cfg.smoothness_weight * weight * torch.stack(roughness).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # The error travels with the gradients, so that every worker reports that of all.
        meter = nn.Parameter(error.detach()[None])
        meter.grad = error.detach()[None]
        average_gradients([*self.parameters, meter])
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {"action_mse": float(meter.grad), "kl": float(self._kl().detach())}

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

    def _draw_topology(self, course: Course, rng: torch.Generator) -> Topology:
        picked = int(torch.randint(len(course.topologies), (), generator=rng))
        return vary(course.topologies[picked], self.variation, self.max_width, rng)

    def _draw_latents(self, task: int, mixes: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(len(mixes), self.ghn.config.latent_dim, generator=rng)
        return self.latents_of(task).sample(mixes.to(self.device), noise.to(self.device))

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

    def save(self, path: Path, step: int) -> None:
        """Everything a next round needs, as one file of ours."""
        state = {name: part.state_dict() for name, part in self.state().items()}
        write_atomic(path, lambda partial: torch.save({"step": step, **state}, partial))

    def load(self, path: Path) -> int:
        saved = load_state(path)
        for name, part in self.state().items():
            part.load_state_dict(saved[name])
        return saved["step"]


def add_weight_noise(layers: Layers, scale: float, rng: torch.Generator) -> Layers:
    """Gaussian noise of `scale` times the rms of each matrix; biases likewise."""
    if scale == 0:
        return layers
    return [
        (_noised(weight, scale, rng, (1, 2)), _noised(bias, scale, rng, (1,)))
        for weight, bias in layers
    ]


def _noised(value: Tensor, scale: float, rng: torch.Generator, dims: tuple[int, ...]) -> Tensor:
    rms = value.detach().square().mean(dims, keepdim=True).sqrt()
    return value + scale * rms * torch.randn(value.shape, generator=rng).to(value)


def neighbour_difference(layers: Layers) -> Tensor:
    """Mean squared difference of neighbouring neurons' weights, relative to the mean square."""
    terms = []
    for i, (weight, _) in enumerate(layers):
        scale = weight.square().mean((1, 2)) + 1e-8
        if i < len(layers) - 1:
            terms.append((weight.diff(dim=1).square().mean((1, 2)) / scale).mean())
        if i > 0:
            terms.append((weight.diff(dim=2).square().mean((1, 2)) / scale).mean())
    return torch.stack(terms).mean()
