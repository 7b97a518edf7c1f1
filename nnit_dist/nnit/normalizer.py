"""The normalizer of tokens: weights to zero mean and unit variance, per kind of token.

Shapes: B networks, N tokens, P values a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnit_dist.nnit.tokens import KINDS, TokenLayout


@dataclass
class TokenNormalizer:
    """Mean and standard deviation of weights per kind of token, float32 [KINDS]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, samples: list[tuple[Tensor, TokenLayout]]) -> "TokenNormalizer":
        """Fit the normalizer to pairs of values [B, N, P] and their layout, without the padding."""
        values: list[list[Tensor]] = [[] for _ in range(KINDS)]
        for tokens, layout in samples:
            for kind in range(KINDS):
                is_kind = layout.kind == kind
                values[kind].append(tokens[:, is_kind][:, layout.mask[is_kind] > 0].flatten())
        joined = [torch.cat(parts) if parts else torch.zeros(1) for parts in values]
        mean = torch.stack([v.mean() if len(v) else torch.zeros(()) for v in joined])
        std = torch.stack([v.std() if len(v) > 1 else torch.ones(()) for v in joined])
        return cls(mean, std.clamp(min=1e-6))

    def normalize(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """Scale values [B, N, P] to zero mean and unit variance; padding becomes 0."""
        white = (values - self.mean[layout.kind, None]) / self.std[layout.kind, None]
        return white * layout.mask

    def denormalize(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """The inverse of `normalize`, except for the padding."""
        return values * self.std[layout.kind, None] + self.mean[layout.kind, None]
