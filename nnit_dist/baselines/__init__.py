"""Baselines for NNiT. They use the same data and have the same method `generate`."""

from typing import Protocol

from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Hidden


class Generator(Protocol):
    """Writes policies of a topology. Sample k depends on (seed, topology, k) alone."""

    name: str

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """Write `samples` policies with the given hidden widths.

        Raises:
            NnitError: the method cannot write this topology.
        """
