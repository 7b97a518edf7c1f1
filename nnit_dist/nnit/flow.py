"""The two diffusions: flow matching on patches, masking on architecture tokens. Torch alone.

Flow matching (arXiv 2210.02747) on the straight path x_t = (1 - t) noise + t data.
The network predicts the data; the error is measured on the velocity
(data - x_t) / (1 - t), which weighs it by 1 / (1 - t)^2. Architecture tokens are masked at a
rate of their own (arXiv 2107.03006, 2406.07524).

Shapes: S sequences, M patches, A architecture tokens, P values a patch, V vocabulary; `owner`
names each token's sequence.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

MIN_REST = 0.1  # the weight of the last steps is bounded: 1 - t counts as at least this


def noised(x_MP: Tensor, noise_MP: Tensor, time_M: Tensor) -> Tensor:
    """The point at `time_M` on the path from noise (0) to data (1)."""
    t = time_M[:, None]
    return (1 - t) * noise_MP + t * x_MP


def flow_loss(
    predicted: Tensor, x_MP: Tensor, mask_MP: Tensor, time_S: Tensor, *, owner_M: Tensor
) -> Tensor:
    """Mean squared velocity error over each sequence's weights [S]; 0 where it has none."""
    error = ((predicted - x_MP).square() * mask_MP).sum(1)
    total = torch.zeros_like(time_S).index_add(0, owner_M, error)
    count = torch.zeros_like(time_S).index_add(0, owner_M, mask_MP.sum(1))
    return total / count.clamp(min=1) / (1 - time_S).clamp(min=MIN_REST) ** 2


def sample_time(generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> float:
    """A noise level, logit-normal: most of the training where it is neither easy nor idle.

    (arXiv 2403.03206; a larger `mean` is nearer to data.)
    """
    return float(torch.sigmoid(mean + std * torch.randn((), generator=generator)))


def integrate(predict: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Heun's method from noise to data along the predicted velocity.

    `predict(x, t)` returns the clean patches. The last step lands on the prediction itself. Steps
    are smallest near noise, where it is decided which network comes out: in steps of one size,
    two of 48 networks for PullCube-v1 came to nothing.
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
    """Each token replaced by the mask with probability `rate`."""
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
    """Mean cross-entropy over each sequence's hidden tokens [S], over the ids allowed to each."""
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
    """Draw the masked tokens one slot at a time, first to last, from the predicted logits."""
    for slot in range(ids_BA.shape[1]):
        if not (ids_BA[:, slot] == mask_id).any():
            continue
        logits = predict(ids_BA)[:, slot].float().masked_fill(~allowed[slot], -torch.inf)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        ids_BA = torch.where(
            (torch.arange(ids_BA.shape[1]) == slot) & (ids_BA == mask_id), drawn[:, None], ids_BA
        )
    return ids_BA
