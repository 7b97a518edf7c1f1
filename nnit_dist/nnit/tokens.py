"""Patches: a policy's weights as a sequence of tokens, and back.

A weight matrix is cut into p x p patches and a bias into runs of p; edges are
padded and the padding is masked. Weights are tokenised in units of
1/sqrt(fan_in), so a token means the same whatever the layer's width. Tokens of
one kind stand together: input patches, hidden patches, output patches, biases.

Shapes: B networks, N tokens, P = p * p values a token.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from nnit_dist.errors import NnitError
from nnit_dist.topology import Topology

INPUT, HIDDEN, OUTPUT, BIAS = range(4)
KINDS = 4
Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TokenLayout:
    """Where every token of a topology lies.

    `kind`, `layer`, `row` and `col` are int64 [N]: row and column of the token's first weight.
    `mask` is float32 [N, P], 1 where a value is a weight and 0 where it is padding.
    `parts` lists, in token order, (layer, is_bias, number of tokens).
    """

    topology: Topology
    patch: int
    kind: Tensor
    layer: Tensor
    row: Tensor
    col: Tensor
    mask: Tensor
    parts: tuple[tuple[int, bool, int], ...]

    @property
    def length(self) -> int:
        return len(self.kind)

    @property
    def kind_counts(self) -> list[int]:
        return torch.bincount(self.kind, minlength=KINDS).tolist()


def layer_kind(topology: Topology, layer: int) -> int:
    return INPUT if layer == 0 else OUTPUT if layer == topology.depth else HIDDEN


@lru_cache(maxsize=4096)
def token_layout(topology: Topology, patch: int) -> TokenLayout:
    """The token layout of a topology; the same for every policy that has it."""
    columns: dict[str, list[Tensor]] = {"kind": [], "layer": [], "row": [], "col": [], "mask": []}
    parts = []
    order = [(i, False) for i in range(topology.num_layers)]
    order += [(i, True) for i in range(topology.num_layers)]
    for layer, is_bias in order:
        out, fan_in = topology.shapes[layer]
        ones = torch.zeros(1, patch, out) if is_bias else torch.ones(1, out, fan_in)
        if is_bias:
            ones[:, 0] = 1  # a run of p biases is the first row of its patch
        mask = _cut(ones, patch)[0]
        rows = torch.arange(0, 1 if is_bias else out, patch)
        cols = torch.arange(0, out if is_bias else fan_in, patch)
        row, col = torch.meshgrid(rows, cols, indexing="ij")
        count = len(mask)
        kind = BIAS if is_bias else layer_kind(topology, layer)
        columns["kind"].append(torch.full((count,), kind))
        columns["layer"].append(torch.full((count,), layer))
        # A bias run belongs to output neurons: its position is a row.
        columns["row"].append((col if is_bias else row).flatten())
        columns["col"].append((row if is_bias else col).flatten())
        columns["mask"].append(mask)
        parts.append((layer, is_bias, count))
    joined = {name: torch.cat(pieces) for name, pieces in columns.items()}
    return TokenLayout(topology, patch, **joined, parts=tuple(parts))


def tokenize(layers: Layers, layout: TokenLayout) -> Tensor:
    """Layers of B networks (weight [B, out, in], bias [B, out]) -> values [B, N, P]."""
    pieces = []
    for layer, is_bias, _ in layout.parts:
        weight, bias = layers[layer]
        if is_bias:
            run = F.pad(bias[:, None], (0, 0, 0, layout.patch - 1))
            pieces.append(_cut(run, layout.patch))
        else:
            pieces.append(_cut(weight * weight.shape[2] ** 0.5, layout.patch))
    return torch.cat(pieces, 1)


def detokenize(values: Tensor, layout: TokenLayout) -> Layers:
    """Inverse of `tokenize`; the padding is dropped."""
    p, shapes = layout.patch, layout.topology.shapes
    weights: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    pieces = values.split([count for *_, count in layout.parts], dim=1)
    for (layer, is_bias, _), piece in zip(layout.parts, pieces, strict=True):
        out, fan_in = shapes[layer]
        if is_bias:
            biases[layer] = rearrange(piece[:, :, :p], "b n p -> b (n p)")[:, :out]
        else:
            grid = rearrange(piece, "b (r c) (p q) -> b (r p) (c q)", c=-(-fan_in // p), p=p, q=p)
            weights[layer] = grid[:, :out, :fan_in] / fan_in**0.5
    return [(weights[i], biases[i]) for i in range(len(shapes))]


def _cut(matrix: Tensor, patch: int) -> Tensor:
    """[B, rows, cols] -> [B, N, P], edges padded with zeros."""
    rows, cols = matrix.shape[1:]
    padded = F.pad(matrix, (0, -cols % patch, 0, -rows % patch))
    return rearrange(padded, "b (r p) (c q) -> b (r c) (p q)", p=patch, q=patch)


class ArchitectureVocabulary:
    """Discrete tokens: task, depth, and one width a layer, in `2 + max_depth` slots.

    Widths are the multiples of the patch size up to `max_width`, seen or not.
    """

    def __init__(self, tasks: list[str], patch: int, max_width: int, max_depth: int) -> None:
        self.tasks, self.patch = tasks, patch
        self.max_width, self.max_depth = max_width, max_depth
        self.widths = list(range(patch, max_width + 1, patch))
        self.slots = 2 + max_depth
        self.none = 0  # the width of a layer that is not there
        self._depth = 1 + len(self.widths)
        self._task = self._depth + max_depth
        self.mask = self._task + len(tasks)
        self.size = self.mask + 1

    def encode(self, task: str, hidden: tuple[int, ...]) -> list[int]:
        """Token ids of an architecture.

        Raises:
            NnitError: the task is unknown, or a width or the depth is out of range.
        """
        if task not in self.tasks:
            raise NnitError(
                f"this model writes policies for {', '.join(self.tasks)}, not for {task}."
            )
        if len(hidden) > self.max_depth:
            raise NnitError(
                f"{len(hidden)} hidden layers are more than the {self.max_depth} that this model "
                "was trained for."
            )
        widths = [1 + self.widths.index(self.check_width(width, task)) for width in hidden]
        padding = [self.none] * (self.max_depth - len(hidden))
        task_id, depth_id = self._task + self.tasks.index(task), self._depth + len(hidden) - 1
        return [task_id, depth_id, *widths, *padding]

    def check_width(self, width: int, task: str) -> int:
        """`width` itself, or an NnitError that names the nearest widths that work."""
        if width in self.widths:
            return width
        if width > self.max_width:
            raise NnitError(
                f"width {width} is above the {self.max_width} that this model was trained for. "
                f"Nearest: {self.max_width}."
            )
        close = sorted(sorted(self.widths, key=lambda known: abs(known - width))[:2])
        raise NnitError(
            f"{task} needs widths that are multiples of {self.patch} (patch size); got {width}. "
            f"Nearest: {', '.join(map(str, close))}."
        )

    def decode(self, ids: list[int]) -> tuple[str, tuple[int, ...]] | None:
        """(task, hidden) of token ids, or None if they are no architecture."""
        task, depth = ids[0] - self._task, ids[1] - self._depth + 1
        widths = ids[2:]
        present = [0 < w <= len(self.widths) for w in widths]
        if not (0 <= task < len(self.tasks) and 1 <= depth <= self.max_depth):
            return None
        if not all(present[:depth]) or any(widths[depth:]):
            return None
        return self.tasks[task], tuple(self.widths[w - 1] for w in widths[:depth])

    def allowed(self) -> Tensor:
        """bool [slots, size]: which ids each slot may hold."""
        allowed = torch.zeros(self.slots, self.size, dtype=torch.bool)
        allowed[0, self._task : self.mask] = True
        allowed[1, self._depth : self._task] = True
        allowed[2:, : self._depth] = True
        allowed[2, self.none] = False
        return allowed

    def numbers(self) -> Tensor:
        """float32 [size]: the width of a width token in multiples of `max_width`, else 0."""
        values = torch.zeros(self.size)
        values[1 : 1 + len(self.widths)] = torch.tensor(self.widths) / self.max_width
        return values
