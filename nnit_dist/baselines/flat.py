"""Flat-vector diffusion: a network is one vector, padded to the size of the largest network.

p-diff and HyperDiffusion (arXiv 2402.13144, 2303.17015) work in this way. Here the vector is also
conditioned on the topology. The objective, the training, the sampler and the aligned networks are
those of NNiT; the networks imitate mixes of the best teachers.

Shapes: B networks, F values of the largest network.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.baselines.crops import policies_of
from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import one_thread, stream
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.dataset import draw_condition
from nnit_dist.nnit.flow import MIN_REST, integrate
from nnit_dist.nnit.tokens import ArchitectureVocabulary
from nnit_dist.nnit.trainer import WARMUP
from nnit_dist.training.optimizer import learning_rate, set_learning_rate


@dataclass(frozen=True)
class FlatLayout:
    """Positions of layers in a flat vector: hidden layers first, the output layer always last."""

    obs_dim: int
    act_dim: int
    width: int
    depth: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer of the largest network."""
        largest = Topology(self.obs_dim, (self.width,) * self.depth, self.act_dim)
        return largest.shapes

    @property
    def length(self) -> int:
        """Length of a vector: the number of weights and biases of the largest network."""
        return sum(out * fan_in + out for out, fan_in in self.shapes)

    def places(self, topology: Topology) -> list[int]:
        """The position of every layer of a topology among the layers of the largest network.

        Raises:
            NnitError: the topology is deeper or wider than the largest network.
        """
        if topology.depth > self.depth or max(topology.hidden) > self.width:
            raise NnitError(
                f"a flat vector for {self.depth} layers of {self.width} units has no room for "
                f"{topology.name}."
            )
        return [*range(topology.depth), self.depth]

    def flatten(self, topology: Topology, networks: MLPBatch) -> Tensor:
        """Turn networks of a topology into vectors [B, F], padded with zeros.

        Weights are in units of 1/sqrt(fan_in).
        """
        parts: list[Tensor] = []
        layers = {place: layer for layer, place in enumerate(self.places(topology))}
        for place, (out, fan_in) in enumerate(self.shapes):
            if place not in layers:
                parts += [torch.zeros(len(networks), out * fan_in + out)]
                continue
            rows, columns = topology.shapes[layers[place]]
            scaled = networks.weights[layers[place]][:, :rows, :columns] * columns**0.5
            bias = networks.biases[layers[place]][:, :rows]
            parts.append(F.pad(scaled, (0, fan_in - columns, 0, out - rows)).flatten(1))
            parts.append(F.pad(bias, (0, out - rows)))
        return torch.cat(parts, 1)

    def unflatten(self, topology: Topology, values: Tensor) -> MLPBatch:
        """Turn vectors [B, F] into networks of a topology: the inverse of `flatten`."""
        sizes = [size for out, fan_in in self.shapes for size in (out * fan_in, out)]
        parts = values.split(sizes, 1)
        weights, biases = [], []
        for place, (out, fan_in) in zip(self.places(topology), topology.shapes, strict=True):
            weight = parts[2 * place].unflatten(1, self.shapes[place])[:, :out, :fan_in]
            weights.append(weight / fan_in**0.5)
            biases.append(parts[2 * place + 1][:, :out])
        return MLPBatch.of_topology(topology, weights, biases)

    def mask(self, topology: Topology) -> Tensor:
        """Mask float32 [F]: 1 where a value belongs to the topology, 0 in the padding."""
        return (self.flatten(topology, MLPBatch.full([topology], 1.0))[0] > 0).float()

    def condition(self, condition: ConditioningShape) -> Tensor:
        """Condition float32 [2 * depth]: relative widths of the hidden layers, and which exist."""
        widths = [w / self.width for w in condition.dims[1:-1]]
        rest = [0.0] * (self.depth - len(widths))
        return torch.tensor([*widths, *rest, *([1.0] * len(widths)), *rest])


class FlatNetwork(nn.Module):
    """A residual MLP, modulated by the noise level and the topology."""

    def __init__(self, length: int, condition: int, width: int, depth: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(length, width), nn.Linear(width, length)
        self.embed = nn.Sequential(nn.Linear(64 + condition, width), nn.SiLU())
        self.modulations = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        for linear in (self.leave, *self.modulations):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BF: Tensor, time_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Predict clean vectors [B, F] from noisy ones, noise levels [B] and conditions [B, C]."""
        rates = torch.linspace(0, math.log(1000), 32, device=x_BF.device).exp()
        angles = time_B[:, None] * rates
        c = self.embed(torch.cat([angles.sin(), angles.cos(), condition_BC], 1))
        h = self.enter(x_BF)
        for block, modulation in zip(self.blocks, self.modulations, strict=True):
            shift, scale, gate = modulation(c).chunk(3, 1)
            h = h + gate * block(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        return self.leave(h)


def width_for(parameters: int, layout: FlatLayout) -> int:
    """The width at which a `FlatNetwork` has the nearest number of parameters."""
    sizes = range(16, 1024, 4)
    count = lambda w: sum(  # noqa: E731
        p.numel() for p in FlatNetwork(layout.length, 2 * layout.depth, w).parameters()
    )
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(sizes[middle]) < parameters else (low, middle)
    return min(sizes[max(0, low - 1) : low + 1], key=lambda w: abs(count(w) - parameters))


class FlatDiffusion:
    """Flow matching on flat vectors of aligned networks that imitate the best teachers.

    It is trained with NNiT's `config`, and has about as many parameters as `parameters`.
    """

    name = "flat_diffusion"

    def __init__(
        self, sampler: HypernetModel, config: NNiTConfig, parameters: int, seed: int = 0
    ) -> None:
        self.sampler, self.config, self.seed = sampler, config, seed
        depth = max(len(hidden) for hidden in sampler.distribution.seen)
        task = sampler.task
        self.layout = FlatLayout(task.obs_dim, task.act_dim, sampler.distribution.max_width, depth)
        self.vocabulary = ArchitectureVocabulary(
            [task.name], config.patch, sampler.distribution.max_width, depth
        )
        torch.manual_seed(seed)
        width = width_for(parameters, self.layout)
        self.network = FlatNetwork(self.layout.length, 2 * depth, width)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.lr, (0.9, 0.98), weight_decay=config.weight_decay
        )
        self.scale = self._spread()

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.network.parameters())

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint."""
        return {"network": self.network, "average": self.average, "optimizer": self.optimizer}

    def step(self, step: int) -> float:
        """Take step number `step`, and return the loss."""
        config = self.config
        set_learning_rate(
            self.optimizer, learning_rate(step, config.steps, peak=config.lr, warmup=WARMUP)
        )
        batch = config.topologies_per_step * config.networks_per_topology
        loss = self.loss(stream("flat.batch", self.seed, step), batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1 - decay
            )
        return float(loss.detach())

    def loss(self, rng: torch.Generator, batch: int) -> Tensor:
        """The flow loss on `batch` new networks."""
        x, mask, condition = self._draw(rng, batch)
        time = torch.sigmoid(torch.randn(batch, generator=rng))
        noise = torch.randn(x.shape, generator=rng)
        x_t = ((1 - time[:, None]) * noise + time[:, None] * x) * mask
        error = (self.network(x_t, time, condition) - x).square() * mask
        return (error.sum(1) / mask.sum(1) / (1 - time).clamp(min=MIN_REST) ** 2).mean()

    def _draw(self, rng: torch.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw aligned networks: vectors [B, F], masks [B, F] and conditions [B, 2 * depth]."""
        seen = self.sampler.distribution.seen
        picked = torch.randint(len(seen), (batch,), generator=rng).tolist()
        topologies = [self.sampler.vary_widths(seen[i], rng) for i in picked]
        teacher_weights = self.sampler.draw_teacher_weights(batch, 1.0, rng)
        conditions = [
            draw_condition(topology, self.config, self.vocabulary, rng) for topology in topologies
        ]
        seeds = torch.randint(2**31, (batch,), generator=rng).tolist()
        generators = [stream("flat.networks", seed) for seed in seeds]
        networks = self.sampler.networks(topologies, teacher_weights, generators, conditions)
        vectors = torch.cat(
            [
                self.layout.flatten(topology, networks.select(slice(i, i + 1)))
                for i, topology in enumerate(topologies)
            ]
        )
        return (
            vectors / self.scale,
            torch.stack([self.layout.mask(topology) for topology in topologies]),
            torch.stack([self.layout.condition(shape) for shape in conditions]),
        )

    def _spread(self) -> Tensor:
        """Root mean square of each layer's weights and of its biases, for every value: [F]."""
        self.scale = torch.ones(self.layout.length)
        vectors, masks, _ = self._draw(stream("flat.scale", self.seed), 128)
        sizes = [size for out, fan_in in self.layout.shapes for size in (out * fan_in, out)]
        parts = zip(vectors.split(sizes, 1), masks.split(sizes, 1), strict=True)
        spread = [values[mask > 0].square().mean().sqrt() for values, mask in parts]
        return torch.cat([s.expand(size) for s, size in zip(spread, sizes, strict=True)])

    @one_thread()
    @torch.no_grad()
    def generate(
        self, hidden: Hidden, samples: int, seed: int = 0, steps: int = 16
    ) -> list[Policy]:
        """As `Generator.generate`, with `steps` steps of the sampler.

        Raises:
            NnitError: the topology is deeper or wider than all seen ones.
        """
        topology = self.sampler.topology(hidden)
        mask, condition = (
            self.layout.mask(topology),
            self.layout.condition(ConditioningShape.of(topology))[None],
        )
        drawn = []
        for number in range(samples):
            noise = torch.randn(
                1, self.layout.length, generator=stream("flat.noise", seed, number, *hidden)
            )
            values = integrate(
                lambda x, t: self.average(x, torch.full((1,), t), condition) * mask,
                noise * mask,
                steps,
            )
            drawn.append(self.layout.unflatten(topology, values * self.scale))
        return policies_of(self.sampler, self.name, drawn, seed)
