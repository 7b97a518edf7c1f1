"""NNiT: one transformer over architecture tokens and weight patches (arXiv 2603.00180).

Embedders, block, network, top to bottom. Conditioning is adaLN-zero (DiT, arXiv
2212.09748) on the noise level of the weights; queries and keys are
RMS-normalised. The network predicts the clean patches themselves: these lie on a
low-dimensional manifold, noise does not (arXiv 2511.13720).

Shapes: B networks of one topology, A architecture slots, N patches, S = A + N,
D width, H heads, P values a patch.
"""

import math

import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.nnit.tokens import KINDS, ArchitectureVocabulary, TokenLayout
from nnit_dist.topology import Topology

FREQUENCIES = 8


class TransformerConfig(BaseModel):
    """Size of the transformer."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(160, gt=0)
    depth: int = Field(6, gt=0)
    heads: int = Field(5, gt=0)


class NNiT(nn.Module):
    """Clean patches and architecture logits from noised patches and masked architecture."""

    numbers: Tensor

    def __init__(
        self, config: TransformerConfig, vocabulary: ArchitectureVocabulary, patch: int
    ) -> None:
        super().__init__()
        dim = config.width
        self.patch, self.slots, self.max_width = patch, vocabulary.slots, vocabulary.max_width
        self.embed_time = TimeEmbedder(dim)
        self.embed_id = nn.Embedding(vocabulary.size, dim)
        self.embed_number = nn.Linear(2 * FREQUENCIES, dim)
        self.embed_slot = nn.Embedding(vocabulary.slots, dim)
        self.embed_value = nn.ModuleList(nn.Linear(patch * patch, dim) for _ in range(KINDS))
        self.embed_place = nn.Sequential(
            nn.Linear(PLACE_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.final = nn.Linear(dim, 2 * dim)
        self.patch_heads = nn.ModuleList(nn.Linear(dim, patch * patch) for _ in range(KINDS))
        self.id_head = nn.Linear(dim, vocabulary.size)
        self.register_buffer("numbers", fourier(vocabulary.numbers()), persistent=False)
        self.initialize()

    def initialize(self) -> None:
        """Xavier for linear layers, zero for what modulates and for the outputs (DiT)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        zero = [self.final, self.id_head, *self.patch_heads]
        for linear in [*zero, *(block.modulation for block in self.blocks)]:
            nn.init.zeros_(linear.weight)

    def forward(
        self,
        ids_BA: Tensor,
        time_B: Tensor,
        x_BNP: Tensor | None,
        layout: TokenLayout | None,
        told: Topology | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Predict clean patches [B, N, P] and logits [B, A, vocabulary].

        `time_B` is the weights' noise level, 0 for noise and 1 for data. Without patches
        the sequence is the architecture alone. The sizes that the patches' places refer to
        are those of `told`, by default the layout's own.
        """
        slots = torch.arange(self.slots, device=ids_BA.device)
        h_BSD = (
            self.embed_id(ids_BA) + self.embed_number(self.numbers[ids_BA]) + self.embed_slot(slots)
        )
        if x_BNP is not None and layout is not None:
            h_BSD = torch.cat([h_BSD, self._embed_patches(x_BNP, layout, told)], 1)
        c_BD = F.silu(self.embed_time(time_B))
        for block in self.blocks:
            h_BSD = block(h_BSD, c_BD)
        shift, scale = self.final(c_BD)[:, None].chunk(2, -1)
        h_BSD = F.layer_norm(h_BSD, h_BSD.shape[-1:]) * (1 + scale) + shift
        logits = self.id_head(h_BSD[:, : self.slots])
        if layout is None:
            return None, logits
        groups = h_BSD[:, self.slots :].split(layout.kind_counts, dim=1)
        patches = [head(group) for head, group in zip(self.patch_heads, groups, strict=True)]
        return torch.cat(patches, 1), logits

    def _embed_patches(self, x_BNP: Tensor, layout: TokenLayout, told: Topology | None) -> Tensor:
        groups = x_BNP.split(layout.kind_counts, dim=1)
        values = [embed(group) for embed, group in zip(self.embed_value, groups, strict=True)]
        place = place_features(layout, told or layout.topology, self.max_width).to(x_BNP)
        return torch.cat(values, 1) + self.embed_place(place)


class Block(nn.Module):
    """Attention and MLP, each modulated by adaLN-zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, h_BSD: Tensor, c_BD: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c_BD)[:, None].chunk(
            6, dim=-1
        )
        normed = F.layer_norm(h_BSD, h_BSD.shape[-1:])
        h_BSD = h_BSD + gate_a * self._attend(normed * (1 + scale_a) + shift_a)
        normed = F.layer_norm(h_BSD, h_BSD.shape[-1:])
        return h_BSD + gate_m * self.mlp(normed * (1 + scale_m) + shift_m)

    def _attend(self, h_BSD: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(h_BSD), "b s (three h d) -> three b h s d", three=3, h=self.heads
        )
        q, k = self.norm_q(q.float()), self.norm_k(k.float())
        # On a CPU the backward pass of attention is faster in float32 (whole step: 1.2 times).
        dtype = torch.float32 if v.device.type == "cpu" else v.dtype
        with torch.autocast(v.device.type, enabled=False):
            attended = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))
        return self.project(rearrange(attended, "b h s d -> b s (h d)"))


class TimeEmbedder(nn.Module):
    """Sinusoids of the noise level through a small MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time_B: Tensor) -> Tensor:
        rates = torch.exp(-math.log(1000) * torch.arange(32, device=time_B.device) / 32)
        angles = 1000 * time_B[:, None] * rates
        return self.mlp(torch.cat([angles.sin(), angles.cos()], -1))


def fourier(x: Tensor) -> Tensor:
    """[...] -> [..., 2 * FREQUENCIES]: sinusoids of a number of order one."""
    angles = x[..., None] * (math.pi / 2 * 2.0 ** torch.arange(FREQUENCIES, device=x.device) / 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


PLACE_FEATURES = 8 * 2 * FREQUENCIES + KINDS


def place_features(layout: TokenLayout, topology: Topology, max_width: int) -> Tensor:
    """[N, PLACE_FEATURES]: where a patch lies, absolutely and in its layer, and in which layer."""
    sizes = torch.tensor(topology.shapes)[layout.layer]
    numbers = [
        layout.row / max_width,
        layout.col / max_width,
        layout.row / sizes[:, 0],
        layout.col / sizes[:, 1],
        sizes[:, 0] / max_width,
        sizes[:, 1] / max_width,
        layout.layer / 8,
        (topology.depth - layout.layer) / 8,
    ]
    kind = F.one_hot(layout.kind, KINDS).float()
    return torch.cat([*(fourier(number.float()) for number in numbers), kind], -1)
