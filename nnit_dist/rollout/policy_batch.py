"""Many different networks at once: each observation through a network of its own.

Networks of one depth are padded in width with zeros, which changes no output (tanh(0) = 0
into weights of 0), and multiplied together as one batch; depths go one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from nnit_dist.core.policy import Policy


class PolicyBatch:
    """Policies of one task, and whose turn each row of a batch of observations is.

    Args:
        policies: networks of any hidden widths and depths.
        owners: for each of N rows, which policy acts on it (a position in `policies`).
        device: where weights and observations lie.
    """

    def __init__(
        self, policies: Sequence[Policy], owners: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners):
            rows.setdefault(owner, []).append(row)
        by_depth: dict[int, list[int]] = {}
        for owner in rows:
            by_depth.setdefault(policies[owner].topology.depth, []).append(owner)
        self._act_dim = policies[0].topology.act_dim
        self._groups = [
            _Group.build([policies[o] for o in group], [rows[o] for o in group], device)
            for group in by_depth.values()
        ]

    @torch.inference_mode()
    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions [N, act_dim] in [-1, 1] for observations [N, obs_dim]."""
        actions = obs.new_zeros(len(obs), self._act_dim)
        for group in self._groups:
            actions[group.filled_rows] = group.forward(obs)
        return actions.clamp(-1, 1)


@dataclass(frozen=True)
class _Group:
    """Networks G of one depth with up to R rows each, padded to common widths.

    Attributes:
        layers: weights [G, in, out] and biases [G, 1, out].
        rows: [G, R], the rows of each network; row 0 again where it has fewer.
        filled: bool [G, R], which of them are its own.
        filled_rows: the rows that are, in order.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    rows: torch.Tensor
    filled: torch.Tensor
    filled_rows: torch.Tensor

    @classmethod
    def build(
        cls, policies: list[Policy], rows: list[list[int]], device: torch.device | str
    ) -> "_Group":
        longest = max(map(len, rows))
        padded = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=device)
        counts = torch.tensor([len(r) for r in rows], device=device)
        filled = torch.arange(longest, device=device) < counts[:, None]
        layers = [_stack([p.layers[i] for p in policies]) for i in range(len(policies[0].layers))]
        placed = [(weight.to(device), bias.to(device)) for weight, bias in layers]
        return cls(placed, padded, filled, padded[filled])

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Outputs of the networks for their own rows, in the order of `filled_rows`."""
        hidden = obs[self.rows]
        for weight, bias in self.layers[:-1]:
            hidden = torch.tanh(torch.baddbmm(bias, hidden, weight))
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, hidden, weight)[self.filled]


def _stack(layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [G, in, out] and biases [G, 1, out] of one layer of G networks, padded with 0."""
    out = max(weight.shape[0] for weight, _ in layers)
    fan_in = max(weight.shape[1] for weight, _ in layers)
    weights = np.zeros((len(layers), out, fan_in), np.float32)
    biases = np.zeros((len(layers), 1, out), np.float32)
    for i, (weight, bias) in enumerate(layers):
        weights[i, : weight.shape[0], : weight.shape[1]] = weight
        biases[i, 0, : len(bias)] = bias
    return rearrange(torch.from_numpy(weights), "g o i -> g i o"), torch.from_numpy(biases)
