"""Warm start: a larger network takes over the parameters of a trained smaller one."""

import torch
from torch import nn

from nnit_dist.core.errors import NnitError


@torch.no_grad()
def warm_start(network: nn.Module, known: nn.Module) -> None:
    """Copy the parameters of `known` into the leading parts of those of `network`.

    Weights from new inputs to known outputs become zero. So a decoder with more channels writes the
    same values as before. If a layer has an attribute `parts`, its outputs consist of that many
    equal parts, and each part is extended on its own.

    Raises:
        NnitError: `known` has a larger parameter, or other parameters.
    """
    parameters, known_parameters = dict(network.named_parameters()), dict(known.named_parameters())
    for name in parameters.keys() | known_parameters.keys():
        shapes = [
            tuple(side[name].shape) if name in side else ()
            for side in (parameters, known_parameters)
        ]
        if len(shapes[0]) != len(shapes[1]) or any(a < b for a, b in zip(*shapes, strict=True)):
            raise NnitError(
                f"cannot continue from this model: its {name} has the shape {shapes[1]}, here it "
                f"is {shapes[0]}. Keep the sizes of its configuration."
            )
    for name, values in known_parameters.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        parts = getattr(layer, "parts", 1)
        chunks = zip(parameters[name].chunk(parts), values.chunk(parts), strict=True)
        for target, source in chunks:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                target[: len(source)] = 0
            target[tuple(slice(size) for size in source.shape)] = source
