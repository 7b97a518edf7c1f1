"""Networks that learn to act as mixes of teachers, each by gradient descent on its own weights.

Many are trained at once. From starts of their own, their neurons come in any order: what alignment
is compared with. From what the hypernetwork wrote, they keep its order and act better.

Shapes: K networks of one depth, T teachers, S states.
"""

import itertools

import torch
from torch import Tensor

from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.ghn import Layers, apply_layers
from nnit_dist.hypernet.latents import action_error
from nnit_dist.training.optimizer import learning_rate, set_learning_rate

WARMUP = 20  # steps in which the learning rate rises, so that a good start is not lost


def imitate(
    topologies: list[Topology],
    teacher_weights: Tensor,
    distillation_data: DistillationData,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    states: int = 64,
    starts: list[Layers] | None = None,
) -> list[Layers]:
    """A network (layers [1, ...], for whitened inputs) of each topology after each mix [B, T].

    Each step compares it on `states` states. They begin with `starts`, or with random weights.
    """
    found: dict[int, Layers] = {}
    for depth in sorted({topology.depth for topology in topologies}):
        members = [i for i, topology in enumerate(topologies) if topology.depth == depth]
        group = _Group([topologies[i] for i in members], seed + depth)
        if starts is not None:
            group.warm_start_from([starts[i] for i in members])
        rng = torch.Generator().manual_seed(seed + depth)
        optimizer = torch.optim.Adam(group.parameters, lr=lr)
        for step in range(steps):
            x, y = distillation_data.draw(teacher_weights[members], states, rng)
            error = action_error(apply_layers(group.layers(), x), y).mean((1, 2))
            set_learning_rate(optimizer, learning_rate(step, steps, lr, WARMUP, floor=0.0))
            optimizer.zero_grad(set_to_none=True)
            error.sum().backward()
            optimizer.step()
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

    @torch.no_grad()
    def warm_start_from(self, starts: list[Layers]) -> None:
        for i, layers in enumerate(starts):
            for layer, (weight, bias) in enumerate(layers):
                _, out, fan_in = weight.shape
                self.weights[layer][i, :out, :fan_in] = weight[0]
                self.biases[layer][i, :out] = bias[0]

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
