"""Training of NNiT: one worker of Ray Train.

Every step draws a few topologies and, for each, networks from the aligned
sampler, so the data never repeats. Networks of one topology form a dense batch:
no padding is computed. A share of every step trains the architecture tokens alone.

The widths that hypernetwork and transformer are told are jittered together, as in the
alignment: a network of a training width stands for one of a width nearby, and so the
widths between are learnt without a network that has them.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnit_dist.align.distill import jitter_widths
from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.nnit.diffusion import flow_loss, mask_ids, masked_loss, noised, sample_times
from nnit_dist.nnit.model import NNiTModel, Whitening
from nnit_dist.nnit.tokens import ArchitectureVocabulary, token_layout, tokenize
from nnit_dist.nnit.transformer import NNiT, TransformerConfig
from nnit_dist.topology import Topology
from nnit_dist.training import Loop, average_gradients, step_generator, worker_setup

ARCHITECTURE_BATCH = 64


class NNiTConfig(BaseModel):
    """The transformer and its training."""

    model_config = ConfigDict(extra="forbid")

    patch: int = Field(8, gt=0, description="side of a weight patch; widths are its multiples")
    transformer: TransformerConfig = TransformerConfig()
    steps: int = Field(2000, gt=0)
    topologies: int = Field(4, gt=0, description="topologies a step")
    networks: int = Field(8, gt=0, description="networks of each of them")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights")
    mask_rate: float = Field(
        0.1, ge=0, le=1, description="architecture tokens hidden beside patches"
    )
    architecture_weight: float = Field(0.05, ge=0, description="of the architecture tokens' loss")
    width_jitter: float = Field(
        12.0, ge=0, description="error, in units, of the widths told, before rounding to patches"
    )
    bf16: bool = Field(True, description="autocast where the device computes in bfloat16")
    checkpoint_every: int = Field(100, gt=0)


def nnit_worker(config: dict) -> None:
    """Ray Train loop: train to the configured number of steps, then write the model."""
    device, rank = worker_setup()
    trainer = NNiTTrainer(
        NNiTConfig(**config["nnit"]),
        AlignedSampler.load(Path(config["ghn"])),
        device,
        config["seed"],
    )
    loop = Loop(trainer.state(), config, log_every=20, save_every=trainer.config.checkpoint_every)
    loop.run(trainer.config.steps, lambda step: trainer.step(step, rank))
    if rank == 0:
        trainer.model().save(Path(config["result"]))


class NNiTTrainer:
    """Network, averaged network and optimiser, with one training step."""

    def __init__(
        self, config: NNiTConfig, sampler: AlignedSampler, device: torch.device, seed: int
    ) -> None:
        self.config, self.sampler, self.device, self.seed = config, sampler, device, seed
        torch.manual_seed(seed)
        max_depth = max(len(hidden) for hidden in sampler.seen)
        self.vocabulary = ArchitectureVocabulary(
            [sampler.task.name], config.patch, sampler.max_width, max_depth
        )
        self.network = NNiT(config.transformer, self.vocabulary, config.patch).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.lr, (0.9, 0.98), weight_decay=config.weight_decay
        )
        self.whitening = self._fit_whitening().to(device)
        self.allowed = self.vocabulary.allowed().to(device)
        self.autocast = config.bf16 and has_bf16(device)

    def state(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average, "optimizer": self.optimizer}

    def model(self) -> NNiTModel:
        """The averaged network with everything that sampling needs."""
        sampler = self.sampler
        return NNiTModel(
            self.average.cpu().eval(),
            self.config.transformer,
            self.vocabulary,
            self.whitening.to(torch.device("cpu")),
            sampler.norm,
            sampler.task,
            sampler.seen,
        )

    def step(self, step: int, rank: int) -> dict[str, float]:
        rng = step_generator(self.seed + 1, step, rank)
        self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        flow, architecture = 0.0, 0.0
        for weights, tokens in self._losses(rng):
            (weights + self.config.architecture_weight * tokens).backward()
            flow, architecture = (
                flow + float(weights.detach()),
                architecture + float(tokens.detach()),
            )
        average_gradients(list(self.network.parameters()))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._update_average(step)
        return {"flow": flow, "architecture": architecture, "grad_norm": float(norm)}

    def _losses(self, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(flow loss, architecture loss) of each part of the batch, scaled to sum to the step's."""
        seen, count = self.sampler.seen, self.config.topologies
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            for index in torch.randint(len(seen), (count,), generator=rng).tolist():
                weights, tokens = self._network_losses(seen[index], rng)
                yield weights / count, tokens / count
            yield torch.zeros((), device=self.device), self._architecture_loss(rng)

    def _network_losses(
        self, hidden: tuple[int, ...], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Losses on fresh networks of one topology."""
        count = self.config.networks
        topology = self.sampler.topology(hidden)
        layout = token_layout(topology, self.config.patch)
        teachers = torch.randint(self.sampler.teachers, (count,), generator=rng)
        told = self._told(topology, rng)
        with torch.autocast(self.device.type, enabled=False):
            layers = self.sampler.layers(topology, teachers, rng, told.dims)
            x = self.whitening.whiten(tokenize(layers, layout).to(self.device), layout)
        noise = torch.randn(x.shape, generator=rng).to(x)
        time = sample_times(count, rng).to(x)
        ids = torch.tensor([self.vocabulary.encode(self.sampler.task.name, told.hidden)] * count)
        ids = ids.to(self.device)
        hidden_rate = torch.rand(count, generator=rng).to(x) < self.config.mask_rate
        masked = mask_ids(ids, self.vocabulary.mask, hidden_rate.float() * 0.5, rng)
        mask = layout.mask.to(x)
        predicted, logits = self.network(masked, time, noised(x, noise, time) * mask, layout, told)
        weights = flow_loss(predicted.float(), x, time, mask)
        return weights, masked_loss(logits.float(), ids, masked, self.allowed)

    def _told(self, topology: Topology, rng: torch.Generator) -> Topology:
        """The topology with its widths changed by a patch or none, within the vocabulary."""
        patch, widths = self.config.patch, self.vocabulary.widths
        moved = jitter_widths(topology, self.config.width_jitter, rng)[1:-1]
        hidden = (min(max(round(w / patch) * patch, widths[0]), widths[-1]) for w in moved)
        return replace(topology, hidden=tuple(hidden))

    def _architecture_loss(self, rng: torch.Generator) -> Tensor:
        """Masked diffusion on architectures alone, so that they can be drawn before weights."""
        seen = self.sampler.seen
        picked = torch.randint(len(seen), (ARCHITECTURE_BATCH,), generator=rng).tolist()
        name = self.sampler.task.name
        ids = torch.tensor([self.vocabulary.encode(name, seen[i]) for i in picked])
        ids = ids.to(self.device)
        rate = torch.rand(len(ids), generator=rng).to(self.device)
        masked = mask_ids(ids, self.vocabulary.mask, rate, rng)
        _, logits = self.network(masked, torch.zeros_like(rate), None, None)
        return masked_loss(logits.float(), ids, masked, self.allowed)

    def _set_lr(self, step: int) -> None:
        warmup = min(1.0, (step + 1) / 50)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.config.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warmup * max(0.02, decay)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for average, value in zip(
            self.average.parameters(), self.network.parameters(), strict=True
        ):
            average.lerp_(value, 1 - decay)

    def _fit_whitening(self) -> Whitening:
        """Statistics of tokens of seen topologies, per kind of token."""
        rng = step_generator(self.seed, 0, 0)
        samples = []
        for index in torch.randint(len(self.sampler.seen), (64,), generator=rng).tolist():
            topology = self.sampler.topology(self.sampler.seen[index])
            layout = token_layout(topology, self.config.patch)
            teachers = torch.randint(self.sampler.teachers, (4,), generator=rng)
            samples.append((tokenize(self.sampler.layers(topology, teachers, rng), layout), layout))
        return Whitening.fit(samples)


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return device.type == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)
