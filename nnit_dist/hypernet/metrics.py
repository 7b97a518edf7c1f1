"""Measures of how well the neurons of networks are aligned.

Shapes: K networks, S states.
"""

import math

import torch
from torch import Tensor

from nnit_dist.core.mlp import MLPBatch


def neighbor_correlation(networks: MLPBatch) -> tuple[float, float]:
    """Correlation of neighboring weights along the neurons of a layer, and along its inputs.

    The first leaves out output layers, whose rows are actions. The second leaves out first layers,
    whose columns are observations. Each matrix is centered by its mean.
    """
    down, across = _Correlation(), _Correlation()
    for network in range(len(networks)):
        layers = networks.layers(network)
        for i, (weight, _) in enumerate(layers):
            centered = weight - weight.mean()
            if i < len(layers) - 1:
                down.add(centered[1:], centered[:-1])
            if i > 0:
                across.add(centered[:, 1:], centered[:, :-1])
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

    Each network is a batch of one, for normalized observations [S, obs_dim]. The mean is over all
    neurons that both networks have: 1 if they act alike, 0 if they are unrelated.
    """
    correlations = []
    activations = (network.cropped().hidden_activations(obs[None]) for network in (first, second))
    for (a,), (b,) in zip(*activations, strict=True):
        common = min(a.shape[1], b.shape[1])
        a, b = (x[:, :common] - x[:, :common].mean(0) for x in (a, b))
        scale = (a.square().sum(0) * b.square().sum(0)).sqrt().clamp(min=1e-9)
        correlations.append((a * b).sum(0) / scale)
    return float(torch.cat(correlations).mean())
