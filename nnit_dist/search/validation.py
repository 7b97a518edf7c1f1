"""Topologies that judge the trials of a search."""

import random

from nnit_dist.core.errors import NnitError
from nnit_dist.core.splits import TopologySplit, is_bottleneck
from nnit_dist.core.topology import Hidden


def validation_topologies(
    split: TopologySplit, widths: list[int], count: int, seed: int
) -> list[Hidden]:
    """Draw topologies that are neither on the training grid nor held out for the test.

    Depths are distributed as on the grid. At least the last width lies between two of the grid's.
    Training varies widths, so some of these topologies are close to networks of training.

    Raises:
        NnitError: there are fewer than `count` such topologies.
    """
    taken = {w for held in split.unseen.values() for hidden in held for w in hidden} | set(widths)
    between = [w for w in range(min(widths), max(widths)) if w not in taken]
    middle = (min(widths) + max(widths)) / 2
    rng, drawn = random.Random(seed), set[Hidden]()
    for _ in range(100 * count):
        if len(drawn) == count or not between:
            break
        others = [rng.choice([*widths, *between]) for _ in rng.choice(split.seen)[1:]]
        hidden = (*others, rng.choice(between))
        if not ("bottleneck" in split.unseen and is_bottleneck(hidden, middle)):
            drawn.add(hidden)
    if len(drawn) < count:
        raise NnitError(
            f"widths {sorted(widths)} leave {len(drawn)} topologies of validation between them, "
            f"and {count} are wanted: train on widths further apart, or ask for fewer with "
            "--topologies."
        )
    return sorted(drawn, key=lambda hidden: (len(hidden), hidden))
