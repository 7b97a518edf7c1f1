"""Latents of teachers, mixes of teachers, and the error of actions.

A mix is a weighting of teachers. Its network acts as the weighted average of the teachers, and its
latent mean is the weighted average of their latent means. So the population is continuous.

Shapes: B networks, T teachers.
"""

import torch
from torch import Tensor, nn


class TeacherLatents(nn.Module):
    """Mean and log standard deviation of the latent z of every teacher, [T, latent_dim]."""

    def __init__(self, teachers: int, latent_dim: int, initial_std: float = 0.1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(teachers, latent_dim))
        self.log_std = nn.Parameter(torch.empty(teachers, latent_dim))
        nn.init.normal_(self.mean)
        if not self.log_std.is_meta:
            with torch.no_grad():
                self.log_std.fill_(initial_std).log_()

    def sample(self, teacher_weights: Tensor, noise: Tensor) -> Tensor:
        """Latents z [B, latent_dim] for mixes [B, T] and standard normal noise [B, latent_dim]."""
        return sample_latents(teacher_weights, self.mean, self.log_std, noise)

    def kl(self) -> Tensor:
        """KL divergence to a unit Gaussian, averaged over teachers and dimensions."""
        variance = (2 * self.log_std).exp()
        return 0.5 * (self.mean**2 + variance - 1 - 2 * self.log_std).mean()


def sample_latents(teacher_weights: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """`TeacherLatents.sample` for the given means and log standard deviations [T, latent_dim]."""
    return teacher_weights @ mean + (teacher_weights @ log_std).exp() * noise


def action_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of actions, where overshooting a clipped target costs nothing.

    `output` is the network's output before clipping, and `target` the action to take, in [-1, 1].
    The policy clips its actions to [-1, 1], so an output beyond a target of -1 or 1 is no error.
    """
    full = target.abs() > 1 - 1e-6  # an average of ones may be rounded below 1
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
    """Draw mixes of teachers, float32 [count, T]; the weights of each add up to 1.

    With probability `best_share` a mix has random weights over `max_teachers_per_mix` of the `best`
    teachers (bool [T]), or over all of them if there are fewer. Otherwise it is one of the other
    teachers alone. If all or none are best, every mix is drawn from all teachers.
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
