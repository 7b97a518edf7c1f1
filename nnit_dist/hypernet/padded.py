"""Networks of different sizes as one batch, padded with units that have no weights.

A batch is computed in a few large operations instead of many small ones, which is what a GPU needs.

Shapes: B networks, L layers at most, W units at most, S states.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nnit_dist.hypernet.ghn import Layers


@dataclass
class Padded:
    """Weights [B, L, W, W] and biases [B, L, W], zero where a network has none.

    `shapes` (int64 [B, L, 2]) are the layers' (out, in), zero where a network has no such layer.
    """

    weights: Tensor
    biases: Tensor
    shapes: Tensor

    @classmethod
    def of(cls, networks: list[Layers]) -> "Padded":
        """From the layers of one network each, [1, out, in] and [1, out]."""
        depth = max(len(layers) for layers in networks)
        width = max(max(weight.shape) for layers in networks for weight, _ in layers)
        weights = torch.zeros(len(networks), depth, width, width)
        biases = torch.zeros(len(networks), depth, width)
        shapes = torch.zeros(len(networks), depth, 2, dtype=torch.int64)
        for network, layers in enumerate(networks):
            for layer, (weight, bias) in enumerate(layers):
                _, out, fan_in = weight.shape
                weights[network, layer, :out, :fan_in] = weight[0]
                biases[network, layer, :out] = bias[0]
                shapes[network, layer] = torch.tensor([out, fan_in])
        return cls(weights, biases, shapes)

    @property
    def last(self) -> Tensor:
        """The index of each network's output layer, int64 [B]."""
        return (self.shapes[..., 0] > 0).sum(1) - 1

    def to(self, device: torch.device) -> "Padded":
        return Padded(*(part.to(device) for part in (self.weights, self.biases, self.shapes)))

    def pick(self, networks: Tensor) -> "Padded":
        """Those of these indices, int64 [K]."""
        parts = (self.weights, self.biases, self.shapes)
        return Padded(*(part.index_select(0, networks) for part in parts))

    def noised(self, scale: float, weights: Tensor, biases: Tensor) -> "Padded":
        """With standard normal noise like `weights` and `biases` added, `scale` times the rms.

        The rms is that of each matrix, and of each vector of biases.
        """
        out, fan_in = self.shapes.unbind(-1)
        rms = _rms(self.weights, out * fan_in, (2, 3))
        return Padded(
            self.weights + scale * rms[..., None, None] * weights,
            self.biases + scale * _rms(self.biases, out, (2,))[..., None] * biases,
            self.shapes,
        )

    def apply(self, obs: Tensor, outputs: int) -> Tensor:
        """Outputs [B, S, outputs] on observations [B, S, <= W], padded with zeros likewise."""
        hidden = F.pad(obs, (0, self.weights.shape[-1] - obs.shape[-1]))
        found, last = torch.zeros_like(hidden), self.last[:, None, None]
        for layer, (weight, bias) in enumerate(
            zip(self.weights.unbind(1), self.biases.unbind(1), strict=True)
        ):
            values = torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))
            found = torch.where(last == layer, values, found)
            hidden = torch.tanh(values)
        return found[..., :outputs]


def _rms(values: Tensor, count: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (values.detach().square().sum(dims) / count.clamp(min=1)).sqrt()
