"""A latent per teacher, and what training with it minimises."""

import math

import torch
from torch import Tensor, nn


class TeacherLatents(nn.Module):
    """Mean and spread of z for every teacher; sampling z gives a continuous population."""

    def __init__(self, teachers: int, latent_dim: int, initial_std: float = 0.1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(teachers, latent_dim))
        self.log_std = nn.Parameter(torch.full((teachers, latent_dim), initial_std).log())

    def sample(self, teacher: Tensor, noise: Tensor) -> Tensor:
        """z [B, latent_dim] for teacher indices [B] and standard normal noise [B, latent_dim]."""
        return self.mean[teacher] + self.log_std[teacher].exp() * noise

    def kl(self) -> Tensor:
        """KL divergence to a unit Gaussian, averaged over teachers and dimensions."""
        variance = (2 * self.log_std).exp()
        return 0.5 * (self.mean**2 + variance - 1 - 2 * self.log_std).mean()


def action_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of actions, where overshooting a clipped target costs nothing.

    `output` is the generated network's output before clipping, `target` the teacher's
    output; both act through clip(., -1, 1), so beyond the clip nothing is left to match.
    """
    clipped = target.clamp(-1, 1)
    beyond = ((target >= 1) & (output >= 1)) | ((target <= -1) & (output <= -1))
    return torch.where(beyond, 0.0, output - clipped).square()


def draw_teachers(
    best: Tensor, shape: tuple[int, ...], best_share: float, rng: torch.Generator
) -> Tensor:
    """Teacher indices [*shape]: with probability `best_share` one of `best` (bool [T]).

    Where all or none are best, any of them.
    """
    if best.all() or not best.any():
        return torch.randint(len(best), shape, generator=rng)
    odds = best * (best_share / best.sum().clamp(min=1))
    odds = odds + ~best * ((1 - best_share) / (~best).sum().clamp(min=1))
    return torch.multinomial(odds, math.prod(shape), replacement=True, generator=rng).view(shape)
