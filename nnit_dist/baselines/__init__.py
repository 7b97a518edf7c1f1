"""What NNiT is compared with: the same data, the same way to ask, `generate(hidden, samples)`."""

from typing import Protocol

from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Hidden


class Generator(Protocol):
    """Writes policies of a topology; sample k depends on (seed, topology, k) alone."""

    name: str

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """`samples` policies of hidden widths, the same for the same seed."""
