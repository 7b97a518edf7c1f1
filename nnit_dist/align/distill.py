"""Training of the graph hypernetwork: one worker of Ray Train.

Each step draws topologies and teachers; the generated network must act as its
teacher does on states that teachers and generated networks visited. Gaussian
noise on the generated weights during training makes the function flat around
them, so that the small errors of a generative model cost little success. Widths are varied,
and the sizes and the depth that the hypernetwork is told are jittered (`told.py`).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import load_file
from torch import Tensor

from nnit_dist.align.ghn import GHN, GHNConfig, Layers, apply_layers
from nnit_dist.align.latents import TeacherLatents, action_error, draw_teachers
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
    meta_batch: int = Field(8, gt=0, description="topologies a step, of each worker")
    latents: int = Field(2, gt=0, description="networks of each topology a step")
    best_share: float = Field(
        0.5, ge=0, le=1, description="of networks after a trial's best snapshot, if others teach"
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


def load_states(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Whitened observations [N, obs_dim] and teacher outputs [N, act_dim], per teacher.

    They are kept in float16.
    """
    arrays = load_file(path)
    count = len([name for name in arrays if name.startswith("obs.")])
    obs, targets = (
        [arrays[f"{name}.{i}"].astype(np.float32) for i in range(count)]
        for name in ("obs", "target")
    )
    return obs, targets


def distill_worker(config: dict) -> None:
    """Ray Train loop: continue training up to `config["until"]` steps."""
    device, rank, _ = worker_setup()
    trainer = Distiller(config, device)
    start = config.get("start_from")
    loop = Loop(trainer.state(), config, log_every=25, save_every=trainer.config.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = trainer.load(Path(start))
    loop.run(config["until"], lambda step: trainer.step(step, rank))
    if rank == 0:
        trainer.save(Path(config["result"]), config["until"])


class Distiller:
    """GHN, latents and optimiser, with one training step."""

    def __init__(self, config: dict, device: torch.device) -> None:
        self.config = DistillConfig(**config["distill"])
        self.device, self.seed = device, config["seed"]
        torch.manual_seed(self.seed)
        topologies = json.loads(config["topologies"])
        obs, targets = load_states(Path(config["states"]))
        self.obs = [torch.from_numpy(array).to(device) for array in obs]
        self.targets = [torch.from_numpy(array).to(device) for array in targets]
        obs_dim, act_dim = self.obs[0].shape[1], self.targets[0].shape[1]
        self.topologies = [Topology(obs_dim, tuple(hidden), act_dim) for hidden in topologies]
        self.variation, self.max_width = config["variation"], config["max_width"]
        self.best = torch.tensor(config["best"])
        ghn_config = GHNConfig(**config["ghn"])
        self.ghn = GHN(ghn_config, obs_dim, act_dim, self.max_width).to(device)
        self.latents = TeacherLatents(len(obs), ghn_config.latent_dim).to(device)
        self.parameters = [*self.ghn.parameters(), *self.latents.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def state(self) -> dict:
        return {"ghn": self.ghn, "latents": self.latents, "optimizer": self.optimizer}

    def step(self, step: int, rank: int = 0) -> dict[str, float]:
        cfg, rng = self.config, generator_of(self.seed, step, rank)
        self._set_lr(step)
        picked = torch.randint(len(self.topologies), (cfg.meta_batch,), generator=rng)
        teachers = draw_teachers(self.best, (cfg.meta_batch, cfg.latents), cfg.best_share, rng)
        noise = torch.randn(*teachers.shape, self.latents.mean.shape[1], generator=rng)
        topologies = [
            vary(self.topologies[index], self.variation, self.max_width, rng)
            for index in picked.tolist()
        ]
        batch = [
            (topology, self.latents.sample(teacher.to(self.device), z))
            for topology, teacher, z in zip(
                topologies, teachers, noise.to(self.device), strict=True
            )
        ]
        errors, roughness = [], []
        told = [
            jitter(topology, cfg.width_jitter, cfg.depth_jitter, rng) for topology in topologies
        ]
        for layers, teacher in zip(self.ghn(batch, told), teachers, strict=True):
            obs, target = self._draw_states(teacher, rng)
            noisy = add_weight_noise(layers, cfg.weight_noise, rng)
            errors.append(action_error(apply_layers(noisy, obs), target).mean())
            if cfg.smoothness_weight:
                roughness.append(neighbour_difference(layers))
        error = torch.stack(errors).mean()
        loss = error + cfg.kl_weight * self.latents.kl()
        if roughness:
            loss = loss + cfg.smoothness_weight * torch.stack(roughness).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {"action_mse": float(error.detach()), "kl": float(self.latents.kl().detach())}

    def _draw_states(self, teachers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Whitened states [B, S, obs_dim] and teacher outputs [B, S, act_dim]."""
        obs, targets = [], []
        for teacher in teachers.tolist():
            pick = torch.randint(len(self.obs[teacher]), (self.config.states,), generator=rng)
            obs.append(self.obs[teacher][pick.to(self.device)])
            targets.append(self.targets[teacher][pick.to(self.device)])
        return torch.stack(obs), torch.stack(targets)

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
