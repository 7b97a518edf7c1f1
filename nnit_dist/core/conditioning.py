"""The shape that the hypernetwork and the transformer are conditioned on.

It may differ from the true shape. Training jitters it (`training.sampling.jitter_condition`). A
network larger than all training networks is conditioned on the largest sizes of training.
"""

from dataclasses import dataclass

from nnit_dist.core.topology import Topology


@dataclass(frozen=True)
class ConditioningShape:
    """Layer sizes from input to output, and the number of hidden layers; neither need be whole."""

    dims: tuple[float, ...]
    depth: float

    @classmethod
    def of(cls, topology: Topology) -> "ConditioningShape":
        """The true shape of a topology."""
        return cls(topology.dims, topology.depth)

    @property
    def layer_positions(self) -> list[float]:
        """Position of each layer, evenly spaced from 0 (first layer) to `depth` (output layer)."""
        layers = len(self.dims) - 1
        return [i * self.depth / (layers - 1) for i in range(layers)]
