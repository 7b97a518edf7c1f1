"""A latent per teacher, mixes of them, and what training with it minimises.

A mix of teachers is a network that does what they do on average, weighted: its latent is as
much between theirs. So the population is continuous, and a network need not copy a teacher.

Shapes: B networks, T teachers.
"""

import torch
from torch import Tensor, nn


class TeacherLatents(nn.Module):
    """Mean and spread of z for every teacher."""

    def __init__(self, teachers: int, latent_dim: int, initial_std: float = 0.1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(teachers, latent_dim))
        self.log_std = nn.Parameter(torch.full((teachers, latent_dim), initial_std).log())

    def sample(self, teacher_weights: Tensor, noise: Tensor) -> Tensor:
        """z [B, latent_dim] for mixes [B, T] and standard normal noise [B, latent_dim]."""
        return sample_latents(teacher_weights, self.mean, self.log_std, noise)

    def kl(self) -> Tensor:
        """KL divergence to a unit Gaussian, averaged over teachers and dimensions."""
        variance = (2 * self.log_std).exp()
        return 0.5 * (self.mean**2 + variance - 1 - 2 * self.log_std).mean()


def sample_latents(teacher_weights: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """As `TeacherLatents.sample`, of means and spreads [T, latent_dim] of whichever teachers."""
    return teacher_weights @ mean + (teacher_weights @ log_std).exp() * noise


def action_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of actions, where overshooting a clipped target costs nothing.

    `output` is the generated network's output before clipping, `target` the action to take, in
    [-1, 1]; the network acts through clip(., -1, 1), so beyond the clip nothing is left to match.
    """
    full = target.abs() > 1 - 1e-6  # a mix of several ones may be a rounding short of one
    beyond = full & (output * target.sign() >= 1)
    return torch.where(beyond, 0.0, output - target).square()


def draw_teacher_weights(
    best: Tensor,
    count: int,
    best_share: float,
    max_teachers_per_mix: int,
    *,
    rng: torch.Generator,
) -> Tensor:
    """Mixes of teachers float32 [count, T], each adding up to 1.

    With probability `best_share` of `blended` of the `best` (bool [T]; of all, if they are fewer),
    any mix of them as likely as any; else one of the others alone. Where all or none are best, a
    mix of any of them.
    """
    groups = [group.nonzero().flatten() for group in (best, ~best) if group.any()]
    teacher_weights = torch.zeros(count, len(best))
    for mix in teacher_weights:
        first = len(groups) == 1 or float(torch.rand((), generator=rng)) < best_share
        group = groups[0 if first else 1]
        picked = group[torch.randperm(len(group), generator=rng)][
            : max_teachers_per_mix if first else 1
        ]
        shares = torch.empty(len(picked)).exponential_(generator=rng)
        mix[picked] = shares / shares.sum()
    return teacher_weights
