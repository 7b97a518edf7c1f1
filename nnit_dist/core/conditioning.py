"""What hypernetwork and transformer are conditioned on: a shape that may differ from the true one.

In training it is jittered (`training.sampling.jitter_condition`); what goes beyond the sizes of
training is conditioned on the largest that training had.
"""

from dataclasses import dataclass

from nnit_dist.core.topology import Topology


@dataclass(frozen=True)
class ConditioningShape:
    """Sizes from input to output, and how many hidden layers the network counts as; all real."""

    dims: tuple[float, ...]
    depth: float

    @classmethod
    def of(cls, topology: Topology) -> "ConditioningShape":
        """The true shape of a topology."""
        return cls(topology.dims, topology.depth)

    @property
    def layer_positions(self) -> list[float]:
        """Where each layer lies: 0 for the first, `depth` for the output, evenly between."""
        layers = len(self.dims) - 1
        return [i * self.depth / (layers - 1) for i in range(layers)]
