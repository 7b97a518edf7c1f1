"""Packing: the sequences of many networks, one after another in one row of tokens.

A sequence has the tokens of an architecture, followed by its weight patches if it has weights.

Shapes: S sequences, T tokens in all, A architecture tokens, M patches, F position features,
P values a patch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.nnit.tokens import KINDS, TokenLayout


@dataclass
class Packed:
    """A row of packed sequences. Index tensors are int64.

    Attributes:
        ids_A: the architecture tokens.
        slots_A: the slot of each architecture token in its architecture.
        kind_M: the kind of each patch.
        places_M: position features of each patch, float32 [M, F].
        mask_MP: float32, 1 where a value is a weight and 0 where it is padding.
        architecture_A: the index in the row of each architecture token.
        patches_M: the index in the row of each patch.
        owner_T: the sequence of each token.
        table_T: the index of each token in all `tables`, flattened.
        tables: (sequences, padded length) of consecutive sequences whose lengths differ at most by
            a factor of two. Attention on a GPU computes each table at once.
        runs: (sequences, length) of consecutive sequences of equal length. Attention on a CPU
            computes each run at once.
        filler: number of meaningless tokens at the end, which form a run of their own. They round
            the length up: few different lengths make a step on a CPU 1.15 times as fast, because
            its kernels are compiled already.
        sequences: S.
    """

    ids_A: Tensor
    slots_A: Tensor
    kind_M: Tensor
    places_M: Tensor
    mask_MP: Tensor
    architecture_A: Tensor
    patches_M: Tensor
    owner_T: Tensor
    table_T: Tensor
    tables: list[tuple[int, int]]
    runs: list[tuple[int, int]]
    filler: int
    sequences: int

    @property
    def owner_A(self) -> Tensor:
        """The sequence of each architecture token, int64 [A]."""
        return self.owner_T[self.architecture_A]

    @property
    def owner_M(self) -> Tensor:
        """The sequence of each patch, int64 [M]."""
        return self.owner_T[self.patches_M]

    def to(self, device: torch.device) -> "Packed":
        """The same row on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]  # tensors for tensors


def pack(
    ids: Sequence[list[int]],
    layouts: Sequence[TokenLayout | None],
    condition: Sequence[ConditioningShape | None],
    unit: int,
    *,
    multiple: int = 1,
) -> Packed:
    """Pack S sequences in the given order. If they are sorted by length, there are few runs.

    A sequence without a layout is an architecture without weights. A missing `condition` stands for
    the true shape. `unit` is the scale of positions, see `place_features`. The length of the row is
    rounded up to a multiple of `multiple`.
    """
    lengths = [
        len(i) + (layout.length if layout else 0) for i, layout in zip(ids, layouts, strict=True)
    ]
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    slots = [torch.arange(len(i)) for i in ids]
    present = [(i, layout) for i, layout in enumerate(layouts) if layout is not None]
    patches = [torch.arange(lay.length) + starts[i] + len(ids[i]) for i, lay in present]
    layer_positions = [
        place_features(lay, condition[i] or ConditioningShape.of(lay.topology), unit)
        for i, lay in present
    ]
    none, filler = torch.zeros(0, dtype=torch.int64), -sum(lengths) % multiple
    rows = [*lengths, filler] if filler else lengths
    tables = _tables(rows)
    sides = [side for count, side in tables for _ in range(count)]
    firsts = itertools.accumulate(sides[:-1], initial=0)
    owner = torch.arange(len(ids)).repeat_interleave(torch.tensor(lengths))
    return Packed(
        ids_A=torch.tensor([token for sequence in ids for token in sequence]),
        slots_A=torch.cat(slots),
        kind_M=torch.cat([none, *(layout.kind for _, layout in present)]),
        places_M=torch.cat([torch.zeros(0, PLACE_FEATURES), *layer_positions]),
        mask_MP=torch.cat([layout.mask for _, layout in present]) if present else torch.zeros(0, 1),
        architecture_A=torch.cat([s + start for s, start in zip(slots, starts, strict=True)]),
        patches_M=torch.cat([none, *patches]),
        owner_T=torch.cat([owner, torch.full((filler,), len(ids) - 1)]),
        table_T=torch.cat([torch.arange(n) + first for n, first in zip(rows, firsts, strict=True)]),
        tables=tables,
        runs=_runs(rows),
        filler=filler,
        sequences=len(ids),
    )


def _tables(lengths: list[int]) -> list[tuple[int, int]]:
    groups: list[list[int]] = []
    for length in lengths:
        longer = [*groups[-1], length] if groups else []
        if longer and max(longer) <= 2 * min(longer):
            groups[-1].append(length)
        else:
            groups.append([length])
    # Attention is fastest on multiples of eight.
    return [(len(group), -(-max(group) // 8) * 8) for group in groups]


def _runs(lengths: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    return runs


FREQUENCIES = 8
PLACE_FEATURES = 8 * 2 * FREQUENCIES + KINDS


def place_features(layout: TokenLayout, condition: ConditioningShape, unit: int) -> Tensor:
    """Position features [N, PLACE_FEATURES] of patches.

    They encode row and column, both absolute and relative to the layer's size, the layer's size,
    its position from both ends, and the patch's kind. Rows, columns and sizes are divided by
    `unit`, positions of layers by 8.
    """
    sizes = torch.tensor(list(zip(condition.dims[1:], condition.dims, strict=False)))[layout.layer]
    place = torch.tensor(condition.layer_positions)[layout.layer]
    numbers = [
        layout.row / unit,
        layout.col / unit,
        layout.row / sizes[:, 0],
        layout.col / sizes[:, 1],
        sizes[:, 0] / unit,
        sizes[:, 1] / unit,
        place / 8,
        (condition.depth - place) / 8,
    ]
    kind = torch.nn.functional.one_hot(layout.kind, KINDS).float()
    return torch.cat([fourier(torch.stack(numbers, 1).float()).flatten(1), kind], 1)


def fourier(x: Tensor) -> Tensor:
    """Sines and cosines [..., 2 * FREQUENCIES] of numbers [...] of order one."""
    rates = torch.pi / 4 * 2.0 ** torch.arange(FREQUENCIES, device=x.device)
    angles = x[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
