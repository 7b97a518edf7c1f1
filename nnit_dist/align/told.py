"""How a network of training departs from the grid: what it is, and what it is told to be.

Its widths are varied: so the widths between those of the grid are learnt from both sides. Its
told sizes and depth are jittered: so what is written changes slowly with them, and what lies a
little beyond the training topologies is written as well.
"""

from dataclasses import dataclass, replace

import torch

from nnit_dist.topology import Topology


@dataclass(frozen=True)
class Told:
    """Sizes from input to output, and the hidden layers that the network counts as; both real."""

    dims: tuple[float, ...]
    depth: float

    @classmethod
    def of(cls, topology: Topology) -> "Told":
        """The truth."""
        return cls(topology.dims, topology.depth)

    @property
    def places(self) -> list[float]:
        """Where each layer lies: 0 for the first, `depth` for the output, evenly between."""
        layers = len(self.dims) - 1
        return [i * self.depth / (layers - 1) for i in range(layers)]


def vary(topology: Topology, units: int, most: int, rng: torch.Generator) -> Topology:
    """Hidden widths changed by up to `units`, each by as many as any, to no more than `most`."""
    moves = torch.randint(-units, units + 1, (topology.depth,), generator=rng).tolist()
    hidden = tuple(min(most, w + move) for w, move in zip(topology.hidden, moves, strict=True))
    return replace(topology, hidden=hidden)


def jitter(topology: Topology, widths: float, depth: float, rng: torch.Generator) -> Told:
    """Hidden widths changed by up to `widths` units (at most by half), the depth by up to `depth`.

    A depth is never told below one layer.
    """
    *moves, longer = (2 * torch.rand(topology.depth + 1, generator=rng) - 1).tolist()
    hidden = [max(w / 2, w + widths * m) for w, m in zip(topology.hidden, moves, strict=True)]
    dims = (topology.obs_dim, *hidden, topology.act_dim)
    return Told(dims, max(1.0, topology.depth + depth * longer))
