"""NNiT: one transformer over architecture tokens and weight patches (arXiv 2603.00180).

Conditioning is adaLN-zero (DiT, arXiv 2212.09748) on the noise levels of weights and architecture
and on the success_once that the written policy is to have. Queries and keys are RMS-normalized. The
transformer predicts clean patches instead of noise, because clean patches lie on a low-dimensional
manifold and noise does not (arXiv 2511.13720).

Sequences are packed (`packing.py`): all layers except attention compute one long row of tokens.

Shapes: T tokens in the row, A architecture tokens, M patches, S sequences, D width, H heads,
P values a patch, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.nnit.packing import FREQUENCIES, PLACE_FEATURES, Packed, fourier
from nnit_dist.nnit.tokens import KINDS, ArchitectureVocabulary

if TYPE_CHECKING:
    from nnit_dist.nnit.config import TransformerConfig


class NNiT(nn.Module):
    """Predicts clean patches and architecture tokens from noised patches and masked tokens."""

    numbers: Tensor
    types: Tensor

    def __init__(
        self, config: "TransformerConfig", vocabulary: ArchitectureVocabulary, patch: int
    ) -> None:
        super().__init__()
        dim, values = config.width, patch * patch
        self.embed_type = nn.Embedding(vocabulary.types_count, dim)
        self.embed_number = nn.Linear(2 * FREQUENCIES, dim)
        self.embed_slot = nn.Linear(2 * FREQUENCIES, dim)
        self.embed_value = nn.Linear(KINDS * values, dim)
        self.embed_place = nn.Sequential(
            nn.Linear(PLACE_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.embed_time, self.embed_rate = LevelEmbedder(dim, 1000), LevelEmbedder(dim, 1000)
        self.embed_success = LevelEmbedder(dim, 20)
        self.any_success = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.final = nn.Linear(dim, 2 * dim)
        self.patch_head = nn.Linear(dim, KINDS * values)
        self.id_head = nn.Linear(dim, vocabulary.size)
        with torch.device("cpu"):  # they are in no file, so they are made even on `meta`
            self.register_buffer("numbers", fourier(vocabulary.numbers()), persistent=False)
            self.register_buffer("types", vocabulary.types(), persistent=False)
        self.initialize()

    def initialize(self) -> None:
        """Initialize linear layers with Xavier, modulations and output layers with zero (DiT)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        modulations: list[Any] = [block.modulation for block in self.blocks]
        for linear in [self.final, self.id_head, self.patch_head, *modulations]:
            nn.init.zeros_(linear.weight)

    def forward(
        self, packed: Packed, x_MP: Tensor, time_S: Tensor, rate_S: Tensor, success_S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict clean patches [M, P] and logits of architecture tokens [A, V].

        `time_S` is the noise level of the weights, 0 for noise and 1 for data. `rate_S` is the
        share of masked architecture tokens. `success_S` is the success_once to condition on, in
        [0, 1], or NaN for any.
        """
        h_TD = self._embed(packed, x_MP)
        success = self.embed_success(success_S.nan_to_num())
        success = torch.where(success_S[:, None].isnan(), self.any_success.to(success), success)
        c_SD = F.silu(self.embed_time(time_S) + self.embed_rate(rate_S) + success)
        for block in self.blocks:
            h_TD = block(h_TD, c_SD, packed)
        shift, scale = self.final(c_SD).index_select(0, packed.owner_T).chunk(2, -1)
        h_TD = modulate(h_TD, shift, scale)
        patches = self.patch_head(h_TD).index_select(0, packed.patches_M).unflatten(1, (KINDS, -1))
        own_M11 = packed.kind_M[:, None, None].expand(-1, 1, patches.shape[2])
        logits = self.id_head(h_TD).index_select(0, packed.architecture_A)
        return patches.gather(1, own_M11)[:, 0], logits

    def _embed(self, packed: Packed, x_MP: Tensor) -> Tensor:
        architecture = self.embed_type(self.types[packed.ids_A])
        architecture = architecture + self.embed_number(self.numbers[packed.ids_A])
        architecture = architecture + self.embed_slot(fourier(packed.slots_A / 8))
        rows = (0, 0, 0, len(packed.owner_T) - len(x_MP))  # as many rows as in the blocks
        patches = self.embed_value(F.pad(by_kind(x_MP, packed.kind_M), rows))
        patches = (patches + self.embed_place(F.pad(packed.places_M, rows)))[: len(x_MP)]
        order = torch.cat([packed.architecture_A, packed.patches_M]).argsort()
        h = torch.cat([architecture, patches.to(architecture)]).index_select(0, order)
        return F.pad(h, (0, 0, 0, packed.filler))


def by_kind(x_MP: Tensor, kind_M: Tensor) -> Tensor:
    """Place patches [M, P] in the part of [M, KINDS * P] for their kind; the rest is zero.

    So one linear layer has separate weights for each kind.
    """
    one_hot = F.one_hot(kind_M, KINDS).to(x_MP)
    return (one_hot[:, :, None] * x_MP[:, None]).flatten(1)


class Block(nn.Module):
    """Attention and MLP, each modulated by adaLN-zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
        )  # SiLU makes a step on a CPU 5% shorter than GELU
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, h_TD: Tensor, c_SD: Tensor, packed: Packed) -> Tensor:
        """Hidden states [T, D] of packed tokens, for conditions [S, D] of their sequences."""
        # The backward pass of index_select is six times as fast as that of indexing.
        modulation = self.modulation(c_SD).index_select(0, packed.owner_T)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        h_TD = h_TD + gate_a * self._attend(modulate(h_TD, shift_a, scale_a), packed)
        return h_TD + gate_m * self.mlp(modulate(h_TD, shift_m, scale_m))

    def _attend(self, h_TD: Tensor, packed: Packed) -> Tensor:
        q, k, v = self.qkv(h_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = self.norm_q(q.float()), self.norm_k(k.float())
        # On a CPU the backward pass of attention is faster in float32 (whole step: 1.2 times).
        on_cpu = v.device.type == "cpu"
        dtype = torch.float32 if on_cpu else v.dtype
        with torch.autocast(v.device.type, enabled=False):
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            attended = (
                attention(q, k, v, packed.runs) if on_cpu else attention_table(q, k, v, packed)
            )
        return self.project(attended.flatten(1))


def attention(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Attention [T, H, d] within each sequence, one run of equal lengths (`Packed`) at a time."""
    sizes = [count * length for count, length in runs]
    done = []
    for (count, length), *qkv in zip(
        runs, *(x.split(sizes) for x in (q_THd, k_THd, v_THd)), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        done.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(done)


def attention_table(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, packed: Packed) -> Tensor:
    """Attention within each sequence, in a few padded tables: on GPUs kernel launches cost most."""
    qkv, sizes = torch.stack([q_THd, k_THd, v_THd], 1), [n * side for n, side in packed.tables]
    padded = qkv.new_zeros(sum(sizes), *qkv.shape[1:]).index_copy(0, packed.table_T, qkv)
    real = torch.zeros(sum(sizes), dtype=torch.bool, device=qkv.device)
    real = real.index_fill(0, packed.table_T, True)
    done = []
    for (count, side), part, mask in zip(
        packed.tables, padded.split(sizes), real.split(sizes), strict=True
    ):
        q, k, v = part.unflatten(0, (count, side)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.view(count, 1, 1, side))
        done.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(done).index_select(0, packed.table_T)


def modulate(h_TD: Tensor, shift_TD: Tensor, scale_TD: Tensor) -> Tensor:
    """Layer normalization of tokens [T, D], with a scale and a shift for each token."""
    normed = F.layer_norm(h_TD, h_TD.shape[-1:]).to(scale_TD.dtype)
    return torch.addcmul(shift_TD, normed, 1 + scale_TD)


class LevelEmbedder(nn.Module):
    """Embeds a number in [0, 1] by sinusoids with rates from 1 to `fastest` and a small MLP."""

    def __init__(self, dim: int, fastest: float) -> None:
        super().__init__()
        self.fastest = fastest
        self.mlp = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, level_S: Tensor) -> Tensor:
        """Embeddings [S, D] of levels [S]."""
        steps = torch.linspace(0, math.log(self.fastest), 32, device=level_S.device)
        angles = level_S[:, None] * steps.exp()
        return self.mlp(torch.cat([angles.sin(), angles.cos()], -1))
