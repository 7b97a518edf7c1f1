"""What the optimizers of all trainings share: a schedule, and gradients averaged over workers."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

AverageGradients = Callable[[list[nn.Parameter]], None]


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.02) -> float:
    """Linearly up to `peak` in `warmup` steps, then down along a cosine, to `floor` of the peak.

    (Cosine decay of arXiv 1608.03983, without restarts.)
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * max(floor, cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all workers, in one message; nothing with one worker.

    Plain data parallelism: every worker starts from the same seed and takes the same steps.
    Parameters that took no part in the loss count as zero.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, piece in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = piece.view_as(parameter)


def average_with_losses(
    parameters: Sequence[nn.Parameter], losses: Tensor, average: AverageGradients
) -> Tensor:
    """Average gradients, and with them, in the same message, this worker's `losses` [K].

    Returns the mean losses of all workers, which so report the same.
    """
    meter = nn.Parameter(losses.detach().clone())
    meter.grad = losses.detach().clone()
    average([*parameters, meter])
    return meter.grad
