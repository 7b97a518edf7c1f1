"""The two diffusions: flow matching on patches, masking on architecture tokens.

Flow matching (arXiv 2210.02747) on the straight path x_t = (1 - t) noise + t data.
The network predicts the data; the error is measured on the velocity
(data - x_t) / (1 - t), which weighs it by 1 / (1 - t)^2.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

MIN_REST = 0.1  # the weight of the last steps is bounded: 1 - t counts as at least this


def noised(x_BNP: Tensor, noise_BNP: Tensor, time_B: Tensor) -> Tensor:
    """The point at `time_B` on the path from noise (0) to data (1)."""
    t = time_B[:, None, None]
    return (1 - t) * noise_BNP + t * x_BNP


def flow_loss(predicted: Tensor, x_BNP: Tensor, time_B: Tensor, mask_NP: Tensor) -> Tensor:
    """Mean squared velocity error over the values that are weights."""
    weight = 1 / (1 - time_B).clamp(min=MIN_REST) ** 2
    error = ((predicted - x_BNP).square() * mask_NP).sum((1, 2)) / mask_NP.sum()
    return (weight * error).mean()


def sample_times(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count], logit-normal: most of the training where it is neither easy."""
    return torch.sigmoid(torch.randn(count, generator=generator))


def integrate(predict: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Heun's method from noise to data along the predicted velocity.

    `predict(x, t)` returns the clean patches. The last step lands on the prediction itself.
    """
    x, times = noise, torch.linspace(0, 1, steps + 1).tolist()
    for now, after in itertools.pairwise(times):
        velocity = (predict(x, now) - x) / (1 - now)
        ahead = x + (after - now) * velocity
        if after < 1:
            corrected = (predict(ahead, after) - ahead) / (1 - after)
            ahead = x + (after - now) * (velocity + corrected) / 2
        x = ahead
    return x


def mask_ids(ids_BA: Tensor, mask_id: int, rate_B: Tensor, generator: torch.Generator) -> Tensor:
    """Each token replaced by the mask with its row's probability (arXiv 2107.03006)."""
    hit = torch.rand(ids_BA.shape, generator=generator).to(ids_BA.device) < rate_B[:, None]
    return torch.where(hit, mask_id, ids_BA)


def masked_loss(logits: Tensor, ids_BA: Tensor, masked_BA: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy on the masked tokens, over the ids that each slot allows."""
    logits = logits.masked_fill(~allowed, -torch.inf)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids_BA.flatten(), reduction="none"
    )
    hidden = (masked_BA != ids_BA).flatten().float()
    return (loss * hidden).sum() / hidden.sum().clamp(min=1)


def unmask(
    predict: Callable[[Tensor], Tensor],
    ids_BA: Tensor,
    mask_id: int,
    allowed: Tensor,
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
