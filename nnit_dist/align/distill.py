"""Training of the graph hypernetwork: one worker of Ray Train.

Each step draws topologies and mixes of teachers, number i of them from (seed, step, i), so that
it does not matter over how many workers they are spread; the generated network must act as its
teachers do on average, on states that teachers and generated networks visited. Gaussian
noise on the generated weights during training makes the function flat around
them, so that the small errors of a generative model cost little success. Widths are varied,
and the sizes and the depth that the hypernetwork is told are jittered (`told.py`).
"""

import json
import math
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnit_dist.align.ghn import GHN, GHNConfig, Layers, apply_layers
from nnit_dist.align.latents import TeacherLatents, action_error, draw_mixes
from nnit_dist.align.lessons import Lessons
from nnit_dist.align.told import jitter, vary
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Topology
from nnit_dist.training import Loop, average_gradients, worker_setup


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
    start = config.get("start_from")
    loop = Loop(trainer.state(), config, log_every=25, save_every=trainer.config.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = trainer.load(Path(start))
    loop.run(config["until"], trainer.step)
    if rank == 0:
        trainer.save(Path(config["result"]), config["until"])


class Distiller:
    """GHN, latents and optimiser, with one training step.

    `share` is (rank, workers): which of a step's topologies are this worker's.
    """

    def __init__(self, config: dict, device: torch.device, share: tuple[int, int] = (0, 1)) -> None:
        self.config = DistillConfig(**config["distill"])
        self.device, self.seed, self.share = device, config["seed"], share
        torch.manual_seed(self.seed)
        topologies = json.loads(config["topologies"])
        self.lessons = Lessons.load(Path(config["states"])).to(device)
        obs_dim, act_dim = self.lessons.obs_dim, self.lessons.act_dim
        self.topologies = [Topology(obs_dim, tuple(hidden), act_dim) for hidden in topologies]
        self.variation, self.max_width = config["variation"], config["max_width"]
        self.best = torch.tensor(config["best"])
        ghn_config = GHNConfig(**config["ghn"])
        self.ghn = GHN(ghn_config, obs_dim, act_dim, self.max_width).to(device)
        self.latents = TeacherLatents(len(self.best), ghn_config.latent_dim).to(device)
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
        topologies = [self._draw_topology(rng) for rng in rngs]
        mixes = [
            draw_mixes(self.best, cfg.latents, cfg.best_share, cfg.blended, rng) for rng in rngs
        ]
        z = [self._draw_latents(mix, rng) for mix, rng in zip(mixes, rngs, strict=True)]
        told = [
            jitter(topology, cfg.width_jitter, cfg.depth_jitter, rng)
            for topology, rng in zip(topologies, rngs, strict=True)
        ]
        networks = self.ghn(list(zip(topologies, z, strict=True)), told)
        errors, roughness = [], []
        for layers, mix, rng in zip(networks, mixes, rngs, strict=True):
            obs, target = self.lessons.draw(mix, cfg.states, rng)
            noisy = add_weight_noise(layers, cfg.weight_noise, rng)
            errors.append(action_error(apply_layers(noisy, obs), target).mean())
            if cfg.smoothness_weight:
                roughness.append(neighbour_difference(layers))
        weight = workers / cfg.meta_batch  # of a topology: gradients are averaged over workers
        error = weight * torch.stack(errors).sum()
        loss = error + cfg.kl_weight * self.latents.kl()
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
        return {"action_mse": float(meter.grad), "kl": float(self.latents.kl().detach())}

    def _draw_topology(self, rng: torch.Generator) -> Topology:
        picked = int(torch.randint(len(self.topologies), (), generator=rng))
        return vary(self.topologies[picked], self.variation, self.max_width, rng)

    def _draw_latents(self, mixes: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(len(mixes), self.latents.mean.shape[1], generator=rng)
        return self.latents.sample(mixes.to(self.device), noise.to(self.device))

    def _set_lr(self, step: int) -> None:
        warmup = min(1.0, (step + 1) / 100)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.config.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warmup * max(0.02, decay)

    def save(self, path: Path, step: int) -> None:
        """Everything a next round needs, as one file of ours."""
        state = {name: part.state_dict() for name, part in self.state().items()}
        partial = path.with_suffix(".tmp")
        torch.save({"step": step, **state}, partial)
        partial.replace(path)

    def load(self, path: Path) -> int:
        saved = torch.load(path, weights_only=True, map_location="cpu")
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
