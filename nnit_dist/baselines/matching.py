"""Permutation matching: neurons put in the order of a reference network's (no training).

Weight matching of Git Re-Basin (Ainsworth et al., arXiv 2209.04836, algorithm 1): layer after
layer, the permutation of hidden neurons that brings the weights into and out of them closest to
the reference's. A narrower network is matched to the first neurons of each of the reference's
layers, so that neuron i means the same in networks of any width.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nnit_dist.core.mlp import Layer, MLPBatch

SWEEPS = 20  # at most; it has usually settled after a few


def match(network: MLPBatch, reference: MLPBatch) -> MLPBatch:
    """The network with its hidden neurons in the reference's order; both are batches of one.

    What it computes stays the same. The reference has as many layers, none narrower.
    """
    layers = network.layers(0)
    cropped = [
        (weight[: len(bias), : own.shape[1]], reference_bias[: len(bias)])
        for (own, bias), (weight, reference_bias) in zip(layers, reference.layers(0), strict=True)
    ]
    return permute(network, [np.argsort(place) for place in _nearest_places(layers, cropped)])


def permute(network: MLPBatch, orders: list[np.ndarray]) -> MLPBatch:
    """A batch of one with hidden layer l's neurons in the order `orders[l]`: the same function."""
    permuted = []
    for i, (weight, bias) in enumerate(network.layers(0)):
        if i > 0:
            weight = weight[:, torch.from_numpy(orders[i - 1])]
        if i < len(orders):
            order = torch.from_numpy(orders[i])
            weight, bias = weight[order], bias[order]
        permuted.append((weight, bias))
    return MLPBatch.from_layers([permuted], network.topology(0).activation)


def _nearest_places(layers: list[Layer], reference: list[Layer]) -> list[np.ndarray]:
    """For every hidden layer, the reference's place of each neuron."""
    joined = [_joined(weight, bias) for weight, bias in layers]
    reference_joined = [_joined(weight, bias) for weight, bias in reference]
    hidden = len(layers) - 1
    places = [np.arange(joined[i].shape[0]) for i in range(hidden)]
    for _ in range(SWEEPS):
        before = [place.copy() for place in places]
        for i in range(hidden):
            places[i] = _assign(joined, reference_joined, places, i)
        if all(np.array_equal(a, b) for a, b in zip(before, places, strict=True)):
            break
    return places


def _joined(weight: Tensor, bias: Tensor) -> np.ndarray:
    """Weights in units of 1/sqrt(fan_in), with the bias as a last column: [out, in + 1]."""
    scaled = weight * weight.shape[1] ** 0.5
    return torch.cat([scaled, bias[:, None]], 1).numpy()


def _assign(
    joined: list[np.ndarray], reference: list[np.ndarray], places: list[np.ndarray], layer: int
) -> np.ndarray:
    """The reference's places of one layer's neurons, given those of the others."""
    inputs = places[layer - 1] if layer > 0 else np.arange(joined[0].shape[1] - 1)
    columns = np.append(inputs, reference[layer].shape[1] - 1)  # the bias matches the bias
    after = places[layer + 1] if layer + 1 < len(places) else np.arange(joined[-1].shape[0])
    gain = joined[layer] @ reference[layer][:, columns].T
    gain += joined[layer + 1][:, :-1].T @ reference[layer + 1][after][:, :-1]
    return linear_sum_assignment(gain, maximize=True)[1]
