"""Imitation: gradient descent on the weights of each network, to act as a mix of teachers.

Many networks are trained at once. Networks that start from random weights have their neurons in
arbitrary order; baselines use them as weights without alignment. Networks that start from generated
weights keep the order of their neurons and act better; refining uses this.

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
    """Train networks for normalized observations, each to imitate its mix of teachers [B, T].

    They start from the networks in `starts`, or from random weights if it has topologies. Each step
    compares every network with its teachers on `states` states.
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
        # Padding stays 0, because its gradients are 0.
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
    """Networks of one depth with normal weights of standard deviation 1/sqrt(fan_in), biases 0."""
    ones = MLPBatch.full(topologies, 1.0)
    scales = ones.shapes[..., 1].double().rsqrt().float()
    weights = [
        torch.randn(mask.shape, generator=rng) * scale[:, None, None] * mask
        for mask, scale in zip(ones.weights, scales.unbind(1), strict=True)
    ]
    return replace(ones, weights=weights, biases=[torch.zeros_like(b) for b in ones.biases])
