"""The two diffusion processes: flow matching on patches, masking on architecture tokens.

Flow matching (arXiv 2210.02747) uses the straight path x_t = (1 - t) noise + t data. The network
predicts the data. The error is that of the velocity (data - x_t) / (1 - t), which weights the
squared error of the data by 1 / (1 - t)^2. Architecture tokens are masked at a separate rate
(arXiv 2107.03006, 2406.07524).

Shapes: S sequences, M patches, A architecture tokens, P values a patch, V vocabulary; `owner`
is the sequence of each token.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

MIN_REST = 0.1  # lower bound of 1 - t in the loss, which bounds the weight near t = 1


def noised(x_MP: Tensor, noise_MP: Tensor, time_M: Tensor) -> Tensor:
    """The point at `time_M` on the path from noise (0) to data (1)."""
    t = time_M[:, None]
    return (1 - t) * noise_MP + t * x_MP


def flow_loss(
    predicted: Tensor, x_MP: Tensor, mask_MP: Tensor, time_S: Tensor, *, owner_M: Tensor
) -> Tensor:
    """Mean squared velocity error of each sequence's weights, [S]; 0 for one without weights."""
    error = ((predicted - x_MP).square() * mask_MP).sum(1)
    total = torch.zeros_like(time_S).index_add(0, owner_M, error)
    count = torch.zeros_like(time_S).index_add(0, owner_M, mask_MP.sum(1))
    return total / count.clamp(min=1) / (1 - time_S).clamp(min=MIN_REST) ** 2


def sample_time(generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> float:
    """Draw a noise level in (0, 1) from a logit-normal distribution (arXiv 2403.03206).

    It favors intermediate levels. A larger `mean` gives levels nearer to the data.
    """
    return float(torch.sigmoid(mean + std * torch.randn((), generator=generator)))


def integrate(predict: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise to data along the predicted velocity, with Heun's method.

    `predict(x, t)` returns the clean patches. The last step ends at the prediction itself. Steps
    are smallest near the noise, where the trajectory commits to one network. With equal steps, two
    of 48 networks for PullCube-v1 failed.
    """
    x, times = noise, torch.linspace(0, 1, steps + 1).square().tolist()
    for now, after in itertools.pairwise(times):
        velocity = (predict(x, now) - x) / (1 - now)
        ahead = x + (after - now) * velocity
        if after < 1:
            corrected = (predict(ahead, after) - ahead) / (1 - after)
            ahead = x + (after - now) * (velocity + corrected) / 2
        x = ahead
    return x


def mask_ids(ids_A: Tensor, mask_id: int, rate: float, generator: torch.Generator) -> Tensor:
    """Replace each token by the mask with probability `rate`."""
    return torch.where(torch.rand(ids_A.shape, generator=generator) < rate, mask_id, ids_A)


def masked_loss(
    logits_AV: Tensor,
    ids_A: Tensor,
    hidden_A: Tensor,
    allowed_AV: Tensor,
    *,
    owner_A: Tensor,
    S: int,
) -> Tensor:
    """Mean cross-entropy [S] of each sequence's hidden tokens, over the ids allowed for each."""
    logits = logits_AV.masked_fill(~allowed_AV, -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, ids_A, reduction="none")
    total = torch.zeros(S, device=loss.device).index_add(0, owner_A, loss * hidden_A)
    count = torch.zeros(S, device=loss.device).index_add(0, owner_A, hidden_A.float())
    return total / count.clamp(min=1)


def unmask(
    predict: Callable[[Tensor], Tensor],
    ids_BA: Tensor,
    mask_id: int,
    allowed: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Draw the masked tokens of ids [B, A] slot by slot, first to last, from predicted logits.

    `predict` maps ids [B, A] to logits [B, A, V]. `allowed` bool [A, V] has the ids that each slot
    may hold.
    """
    for slot in range(ids_BA.shape[1]):
        if not (ids_BA[:, slot] == mask_id).any():
            continue
        logits = predict(ids_BA)[:, slot].float().masked_fill(~allowed[slot], -torch.inf)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        ids_BA = torch.where(
            (torch.arange(ids_BA.shape[1]) == slot) & (ids_BA == mask_id), drawn[:, None], ids_BA
        )
    return ids_BA
