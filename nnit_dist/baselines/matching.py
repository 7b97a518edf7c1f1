"""Permutation matching: reorders a network's neurons to match a reference network.

This is the weight matching of Git Re-Basin (Ainsworth et al., arXiv 2209.04836, algorithm 1). It
permutes the hidden neurons layer by layer, so that their input and output weights are closest to
those of the reference. A narrower network is matched to the first neurons of the reference's
layers, so that neuron i means the same in networks of any width.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nnit_dist.core.mlp import Layer, MLPBatch

SWEEPS = 20  # maximum; the matching usually converges after a few


def match(network: MLPBatch, reference: MLPBatch) -> MLPBatch:
    """Reorder a network's hidden neurons to match the reference; both are batches of one network.

    The network's function stays the same. The reference has the same depth, and none of its layers
    is narrower.
    """
    layers = network.layers(0)
    cropped = [
        (weight[: len(bias), : own.shape[1]], reference_bias[: len(bias)])
        for (own, bias), (weight, reference_bias) in zip(layers, reference.layers(0), strict=True)
    ]
    return permute(network, [np.argsort(place) for place in _nearest_places(layers, cropped)])


def permute(network: MLPBatch, orders: list[np.ndarray]) -> MLPBatch:
    """Put the neurons of hidden layer l in the order `orders[l]`, without changing the function."""
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
    """For every hidden layer, the index of each neuron's match in the reference."""
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
    """Match the neurons of one layer to the reference's, given the matches of the other layers."""
    inputs = places[layer - 1] if layer > 0 else np.arange(joined[0].shape[1] - 1)
    columns = np.append(inputs, reference[layer].shape[1] - 1)  # the bias matches the bias
    after = places[layer + 1] if layer + 1 < len(places) else np.arange(joined[-1].shape[0])
    gain = joined[layer] @ reference[layer][:, columns].T
    gain += joined[layer + 1][:, :-1].T @ reference[layer + 1][after][:, :-1]
    return linear_sum_assignment(gain, maximize=True)[1]
