"""Networks that imitate the teachers too, but each on its own: what alignment is compared with.

Many are trained at once, from random starts of their own, on the states that the hypernetwork
was trained on. They do what aligned networks do, and their neurons come in any order.

Shapes: K networks of one depth, S states.
"""

import itertools

import torch
from torch import Tensor

from nnit_dist.align.ghn import Layers, apply_layers
from nnit_dist.align.latents import action_error
from nnit_dist.align.lessons import Lessons
from nnit_dist.topology import Topology

BATCH = 64


def train_independent(
    topologies: list[Topology],
    mixes: Tensor,
    lessons: Lessons,
    steps: int,
    seed: int,
    lr: float = 3e-3,
) -> list[Layers]:
    """A network (layers [1, ...], for whitened inputs) of each topology after each mix [B, T]."""
    found: dict[int, Layers] = {}
    for depth in sorted({topology.depth for topology in topologies}):
        members = [i for i, topology in enumerate(topologies) if topology.depth == depth]
        group = _Group([topologies[i] for i in members], seed + depth)
        rng = torch.Generator().manual_seed(seed + depth)
        optimizer = torch.optim.Adam(group.parameters, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            x, y = lessons.draw(mixes[members], BATCH, rng)
            error = action_error(apply_layers(group.layers(), x), y).mean((1, 2))
            optimizer.zero_grad(set_to_none=True)
            error.sum().backward()
            optimizer.step()
            schedule.step()
        for index, i in enumerate(members):
            found[i] = group.cut(index)
    return [found[i] for i in range(len(topologies))]


class _Group:
    """Networks of one depth, padded with units that have no weights."""

    def __init__(self, topologies: list[Topology], seed: int) -> None:
        self.topologies = topologies
        rng = torch.Generator().manual_seed(seed)
        dims = [max(sizes) for sizes in zip(*(t.dims for t in topologies), strict=True)]
        self.weights, self.biases, self.masks = [], [], []
        for layer, (fan_in, out) in enumerate(itertools.pairwise(dims)):
            mask = torch.zeros(len(topologies), out, fan_in)
            scale = torch.ones(len(topologies), 1, 1)
            for i, topology in enumerate(topologies):
                rows, columns = topology.shapes[layer]
                mask[i, :rows, :columns] = 1
                scale[i] = columns**-0.5
            weight = torch.randn(mask.shape, generator=rng) * scale * mask
            self.masks.append(mask)
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(len(topologies), out, requires_grad=True))

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def layers(self) -> Layers:
        rows = [mask[:, :, 0] for mask in self.masks]
        return [
            (weight * mask, bias * row)
            for weight, bias, mask, row in zip(
                self.weights, self.biases, self.masks, rows, strict=True
            )
        ]

    def cut(self, index: int) -> Layers:
        shapes = self.topologies[index].shapes
        return [
            (
                weight[index : index + 1, :out, :fan_in].detach().clone(),  # not a view of all
                bias[index : index + 1, :out].detach().clone(),
            )
            for (weight, bias), (out, fan_in) in zip(self.layers(), shapes, strict=True)
        ]
