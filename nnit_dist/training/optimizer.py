"""What the optimizers of both trainers share: the schedule, and gradients averaged over workers."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

AverageGradients = Callable[[list[nn.Parameter]], None]


def learning_rate(step: int, steps: int, *, peak: float, warmup: int, floor: float = 0.02) -> float:
    """The learning rate of a step: a cosine over `steps`, with a linear warmup.

    The cosine (arXiv 1608.03983, without restarts) falls from `peak` to `floor * peak`.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * max(floor, cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace gradients by their means over all workers, in a single message.

    This is plain data parallelism: all workers start with equal parameters and take equal steps.
    A missing gradient counts as zero. With a single worker, nothing happens.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = mean.view_as(parameter)


def average_with_losses(
    parameters: Sequence[nn.Parameter], losses: Tensor, average: AverageGradients
) -> Tensor:
    """Average the gradients and, in the same message, the `losses` [K] of all workers.

    Returns the mean losses [K], which are equal on all workers.
    """
    carrier = nn.Parameter(losses.detach().clone())
    carrier.grad = losses.detach().clone()
    average([*parameters, carrier])
    return carrier.grad
