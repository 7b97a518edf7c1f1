"""Networks that learn to act as mixes of teachers, each by gradient descent on its own weights.

Many are trained at once. From starts of their own, their neurons come in any order: what alignment
is compared with. From what the hypernetwork wrote, they keep its order and act better.

Shapes: T teachers, S states.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.latents import action_error
from nnit_dist.training.optimizer import learning_rate, set_learning_rate

WARMUP = 20  # steps in which the learning rate rises, so that a good start is not lost


def imitate(
    starts: MLPBatch | Sequence[Topology],
    teacher_weights: Tensor,
    distillation_data: DistillationData,
    steps: int,
    *,
    seed: int,
    lr: float = 3e-3,
    states: int = 64,
) -> MLPBatch:
    """Networks for normalized observations, each trained to imitate its mix of teachers [B, T].

    They begin with `starts`, or where that has topologies with random weights. Each step compares
    them on `states` states.
    """
    trained, order = [], []
    given = starts.depths.tolist() if isinstance(starts, MLPBatch) else [t.depth for t in starts]
    for depth in sorted(set(given)):
        members = [i for i, layers in enumerate(given) if layers == depth]
        if isinstance(starts, MLPBatch):
            networks = starts.select(members).cropped()
        else:
            networks = _random_networks(
                [starts[i] for i in members], stream("imitation.networks", seed, depth)
            )
        # Padding stays 0, as its gradients are.
        parameters = [x.clone().requires_grad_() for x in (*networks.weights, *networks.biases)]
        layers = len(networks.weights)
        networks = replace(networks, weights=parameters[:layers], biases=parameters[layers:])
        rng = stream("imitation.batches", seed, depth)
        optimizer = torch.optim.Adam(parameters, lr=lr)
        for step in range(steps):
            x, y = distillation_data.draw(teacher_weights[members], states, rng)
            error = action_error(networks.forward(x), y).mean((1, 2))
            set_learning_rate(
                optimizer, learning_rate(step, steps, peak=lr, warmup=WARMUP, floor=0.0)
            )
            optimizer.zero_grad(set_to_none=True)
            error.sum().backward()
            optimizer.step()
        trained.append(networks)
        order += members
    with torch.no_grad():
        return MLPBatch.cat(trained).select(torch.tensor(order).argsort())


def _random_networks(topologies: list[Topology], rng: torch.Generator) -> MLPBatch:
    """Networks of one depth with normal weights times 1/sqrt(fan_in), and biases of 0."""
    ones = MLPBatch.full(topologies, 1.0)
    scales = ones.shapes[..., 1].double().rsqrt().float()
    weights = [
        torch.randn(mask.shape, generator=rng) * scale[:, None, None] * mask
        for mask, scale in zip(ones.weights, scales.unbind(1), strict=True)
    ]
    return replace(ones, weights=weights, biases=[torch.zeros_like(b) for b in ones.biases])
