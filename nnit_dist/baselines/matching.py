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

from nnit_dist.hypernet.ghn import Layers

SWEEPS = 20  # at most; it has usually settled after a few


def match(layers: Layers, reference: Layers) -> Layers:
    """The network (layers [1, ...]) with its hidden neurons in the reference's order.

    What it computes stays the same. The reference has as many layers, none narrower.
    """
    shapes = [weight.shape[1:] for weight, _ in layers]
    cropped = [
        (weight[:, :out, :fan_in], bias[:, :out])
        for (weight, bias), (out, fan_in) in zip(reference, shapes, strict=True)
    ]
    return permute(layers, [np.argsort(place) for place in _nearest_places(layers, cropped)])


def permute(layers: Layers, orders: list[np.ndarray]) -> Layers:
    """Hidden layer l's neurons in the order `orders[l]`: the same function."""
    permuted = []
    for i, (weight, bias) in enumerate(layers):
        if i > 0:
            weight = weight[:, :, torch.from_numpy(orders[i - 1])]
        if i < len(orders):
            order = torch.from_numpy(orders[i])
            weight, bias = weight[:, order], bias[:, order]
        permuted.append((weight, bias))
    return permuted


def _nearest_places(layers: Layers, reference: Layers) -> list[np.ndarray]:
    """For every hidden layer, the reference's place of each neuron."""
    own = [_joined(weight, bias) for weight, bias in layers]
    ref = [_joined(weight, bias) for weight, bias in reference]
    hidden = len(layers) - 1
    places = [np.arange(own[i].shape[0]) for i in range(hidden)]
    for _ in range(SWEEPS):
        before = [place.copy() for place in places]
        for i in range(hidden):
            places[i] = _assign(own, ref, places, i)
        if all(np.array_equal(a, b) for a, b in zip(before, places, strict=True)):
            break
    return places


def _joined(weight: Tensor, bias: Tensor) -> np.ndarray:
    """Weights in units of 1/sqrt(fan_in), with the bias as a last column: [out, in + 1]."""
    scaled = weight[0] * weight.shape[2] ** 0.5
    return torch.cat([scaled, bias[0][:, None]], 1).numpy()


def _assign(
    own: list[np.ndarray], ref: list[np.ndarray], places: list[np.ndarray], layer: int
) -> np.ndarray:
    """The reference's places of one layer's neurons, given those of the others."""
    inputs = places[layer - 1] if layer > 0 else np.arange(own[0].shape[1] - 1)
    columns = np.append(inputs, ref[layer].shape[1] - 1)  # the bias matches the bias
    after = places[layer + 1] if layer + 1 < len(places) else np.arange(own[-1].shape[0])
    gain = own[layer] @ ref[layer][:, columns].T
    gain += own[layer + 1][:, :-1].T @ ref[layer + 1][after][:, :-1]
    return linear_sum_assignment(gain, maximize=True)[1]
