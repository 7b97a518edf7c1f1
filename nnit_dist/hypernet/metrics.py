"""How aligned networks are: what "structurally aligned" means, in numbers.

Shapes: K networks, S states.
"""

import math

import torch
from torch import Tensor

from nnit_dist.hypernet.ghn import Layers


def neighbour_correlation(networks: list[Layers]) -> tuple[float, float]:
    """Correlation of neighbouring weights along the neurons of a layer, and along its inputs.

    The first is over all matrices but the output's, whose rows are actions; the second over all
    but the first, whose columns are observations. Weights are centred by matrix.
    """
    down, across = _Correlation(), _Correlation()
    for layers in networks:
        for i, (weight, _) in enumerate(layers):
            centred = weight[0] - weight.mean()
            if i < len(layers) - 1:
                down.add(centred[1:], centred[:-1])
            if i > 0:
                across.add(centred[:, 1:], centred[:, :-1])
    return down.value(), across.value()


class _Correlation:
    def __init__(self) -> None:
        self.product, self.first, self.second = 0.0, 0.0, 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        self.product += float((a * b).sum())
        self.first += float(a.square().sum())
        self.second += float(b.square().sum())

    def value(self) -> float:
        return self.product / math.sqrt(self.first * self.second)


def hidden_activations(layers: Layers, obs: Tensor) -> list[Tensor]:
    """Activations [S, width] of every hidden layer on whitened observations [S, obs_dim]."""
    found, hidden = [], obs
    for weight, bias in layers[:-1]:
        hidden = torch.tanh(hidden @ weight[0].T + bias[0])
        found.append(hidden)
    return found


def neuron_similarity(one: Layers, other: Layers, obs: Tensor) -> float:
    """Mean correlation, over states, of neuron i of a layer in two networks of the same depth.

    For all i that both have; 1 if corresponding neurons do the same, 0 if they are strangers.
    """
    found = []
    pairs = zip(hidden_activations(one, obs), hidden_activations(other, obs), strict=True)
    for a, b in pairs:
        common = min(a.shape[1], b.shape[1])
        a, b = (x[:, :common] - x[:, :common].mean(0) for x in (a, b))
        scale = (a.square().sum(0) * b.square().sum(0)).sqrt().clamp(min=1e-9)
        found.append((a * b).sum(0) / scale)
    return float(torch.cat(found).mean())
