"""How aligned networks are: what "structurally aligned" means, in numbers.

Shapes: K networks, S states.
"""

import math

import torch
from torch import Tensor

from nnit_dist.core.mlp import MLPBatch


def neighbour_correlation(networks: MLPBatch) -> tuple[float, float]:
    """Correlation of neighbouring weights along the neurons of a layer, and along its inputs.

    The first is over all matrices but the output's, whose rows are actions; the second over all
    but the first, whose columns are observations. Weights are centred by matrix.
    """
    down, across = _Correlation(), _Correlation()
    for network in range(len(networks)):
        layers = networks.layers(network)
        for i, (weight, _) in enumerate(layers):
            centred = weight - weight.mean()
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


def neuron_similarity(first: MLPBatch, second: MLPBatch, obs: Tensor) -> float:
    """Mean correlation, over states, of neuron i of a layer in two networks of the same depth.

    Each is a batch of one, for normalized observations [S, obs_dim]. For all i that both have; 1 if
    corresponding neurons do the same, 0 if they are strangers.
    """
    correlations = []
    activations = (network.cropped().hidden_activations(obs[None]) for network in (first, second))
    for (a,), (b,) in zip(*activations, strict=True):
        common = min(a.shape[1], b.shape[1])
        a, b = (x[:, :common] - x[:, :common].mean(0) for x in (a, b))
        scale = (a.square().sum(0) * b.square().sum(0)).sqrt().clamp(min=1e-9)
        correlations.append((a * b).sum(0) / scale)
    return float(torch.cat(correlations).mean())
