"""A trained network with room for more: what it knows is kept, what is new starts untrained."""

import torch
from torch import nn

from nnit_dist.core.errors import NnitError


@torch.no_grad()
def warm_start(network: nn.Module, known: nn.Module) -> None:
    """Give every parameter of `network` the values of `known` in its leading part.

    Outputs that are known do not hear inputs that are new: with more channels, a decoder writes
    what it wrote before.
    Where a layer's outputs are several parts (its attribute `parts`), each part grows on its own.

    Raises:
        NnitError: `known` is larger, or of another make.
    """
    own, old = dict(network.named_parameters()), dict(known.named_parameters())
    for name in own.keys() | old.keys():
        shapes = [tuple(side[name].shape) if name in side else () for side in (own, old)]
        if len(shapes[0]) != len(shapes[1]) or any(a < b for a, b in zip(*shapes, strict=True)):
            raise NnitError(
                f"cannot continue from this model: its {name} has the shape {shapes[1]}, here it "
                f"is {shapes[0]}. Keep the sizes of its configuration."
            )
    for name, values in old.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        parts = getattr(layer, "parts", 1)
        for mine, theirs in zip(own[name].chunk(parts), values.chunk(parts), strict=True):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                mine[: len(theirs)] = 0
            mine[tuple(slice(size) for size in theirs.shape)] = theirs
