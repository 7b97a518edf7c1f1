"""Tokens: a policy's weights as a sequence of patches and back, and discrete architecture tokens.

A weight matrix is cut into p x p patches and a bias into runs of p. Edges are
padded, and the padding is masked. Weights are in units of 1/sqrt(fan_in), so
that a token means the same at any width of the layer. Tokens of one kind are
consecutive: input patches, hidden patches, output patches, biases.

Shapes: B networks, N tokens, P = p * p values a token.
"""

from dataclasses import dataclass
from operator import attrgetter
from threading import Lock

import torch
from cachetools import LRUCache, cached
from torch import Tensor
from torch.nn import functional as F

from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.splits import DEEPER
from nnit_dist.core.topology import MOST_DEPTH, MOST_WIDTH, Topology

BIAS, KINDS = 3, 4  # a patch of weights has the kind of its layer: 0, 1 or 2
LAYOUT_CACHE_BYTES = 256 * 2**20  # a training process uses thousands of random topologies


@dataclass(frozen=True)
class TokenLayout:
    """The kind and the position of every token of a topology.

    `kind`, `layer`, `row` and `col` are int64 [N]; `row` and `col` are those of the token's first
    weight. `mask` is float32 [N, P], 1 where a value is a weight and 0 where it is padding.
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
        """Number of tokens of a network."""
        return len(self.kind)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return sum(x.nbytes for x in (self.kind, self.layer, self.row, self.col, self.mask))


@cached(LRUCache(LAYOUT_CACHE_BYTES, getsizeof=attrgetter("nbytes")), lock=Lock())
def token_layout(topology: Topology, patch: int) -> TokenLayout:
    """The token layout of a topology, with patches of side `patch`."""
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
        kind = BIAS if is_bias else topology.layer_kind(layer)
        columns["kind"].append(torch.full((count,), kind))
        columns["layer"].append(torch.full((count,), layer))
        # A bias run belongs to output neurons: its position is a row.
        columns["row"].append((col if is_bias else row).flatten())
        columns["col"].append((row if is_bias else col).flatten())
        columns["mask"].append(mask)
        parts.append((layer, is_bias, count))
    joined = {name: torch.cat(pieces) for name, pieces in columns.items()}
    return TokenLayout(topology, patch, **joined, parts=tuple(parts))


def tokenize(networks: MLPBatch, layout: TokenLayout) -> Tensor:
    """Turn networks of the layout's topology into token values [B, N, P]."""
    pieces = []
    for layer, is_bias, _ in layout.parts:
        out, fan_in = layout.topology.shapes[layer]
        if is_bias:
            run = F.pad(networks.biases[layer][:, None, :out], (0, 0, 0, layout.patch - 1))
            pieces.append(_cut(run, layout.patch))
        else:
            weight = networks.weights[layer][:, :out, :fan_in]
            pieces.append(_cut(weight * fan_in**0.5, layout.patch))
    return torch.cat(pieces, 1)


def detokenize(values: Tensor, layout: TokenLayout) -> MLPBatch:
    """Turn token values [B, N, P] into networks: the inverse of `tokenize`, without padding."""
    p, shapes = layout.patch, layout.topology.shapes
    weights: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    pieces = values.split([count for *_, count in layout.parts], dim=1)
    for (layer, is_bias, _), piece in zip(layout.parts, pieces, strict=True):
        out, fan_in = shapes[layer]
        if is_bias:
            biases[layer] = piece[:, :, :p].flatten(1)[:, :out]
        else:
            grid = piece.unflatten(1, (-1, -(-fan_in // p))).unflatten(-1, (p, p))
            matrix = grid.transpose(2, 3).flatten(1, 2).flatten(2)
            weights[layer] = matrix[:, :out, :fan_in] / fan_in**0.5
    layers = range(len(shapes))
    return MLPBatch.of_topology(
        layout.topology, [weights[i] for i in layers], [biases[i] for i in layers]
    )


def _cut(matrix: Tensor, patch: int) -> Tensor:
    """Cut matrices [B, rows, cols] into patches [B, N, P], with edges padded with zeros."""
    rows, cols = matrix.shape[1:]
    padded = F.pad(matrix, (0, -cols % patch, 0, -rows % patch))
    grid = padded.unflatten(1, (-1, patch)).unflatten(-1, (-1, patch))
    return grid.transpose(2, 3).flatten(1, 2).flatten(2)


class ArchitectureVocabulary:
    """Discrete tokens of an architecture: its task, its depth, and the width of each hidden layer.

    The id of a width is the width itself, in units; the smallest is the side of a patch. Training
    uses widths up to `max_width` and depths up to `max_depth`, and architectures are drawn within
    these limits. The vocabulary itself has twice the width and `DEEPER` more layers.
    """

    def __init__(self, tasks: list[str], patch: int, max_width: int, max_depth: int) -> None:
        if not (0 < patch <= max_width <= MOST_WIDTH and 0 < max_depth <= MOST_DEPTH):
            raise NnitError(
                f"patches of {patch}, widths up to {max_width} and depths up to {max_depth} are "
                f"out of range: patch <= width <= {MOST_WIDTH}, depth <= {MOST_DEPTH}."
            )
        self.tasks, self.patch = tasks, patch
        self.max_width, self.max_depth = max_width, max_depth
        self.most_units = 2 * max_width
        self.depths = list(range(1, max_depth + DEEPER + 1))
        self.slots = 2 + max_depth  # number of tokens of a drawn architecture
        self.none = 0  # the width of a missing layer
        self._depth = 1 + self.most_units
        self._task = self._depth + len(self.depths)
        self.mask = self._task + len(tasks)
        self.size = self.mask + 1
        self.types_count = 4 + len(tasks)

    def encode(self, task: str, hidden: tuple[int, ...]) -> list[int]:
        """Token ids of an architecture: task, depth, and one width for each hidden layer.

        Raises:
            NnitError: the task is unknown, or a width or the depth is out of range.
        """
        self.check_task(task)
        if len(hidden) > self.depths[-1]:
            raise NnitError(
                f"{len(hidden)} hidden layers are too many: this model was trained for up to "
                f"{self.max_depth}, and writes up to {self.depths[-1]}."
            )
        if (width := max(hidden)) > self.most_units:
            raise NnitError(
                f"width {width} is too much: this model was trained for up to {self.max_width}, "
                f"and writes up to {self.most_units}."
            )
        if (width := min(hidden)) < self.patch:
            raise NnitError(
                f"width {width} is too little: this model writes from {self.patch} units up, the "
                "side of a patch."
            )
        return [self._task + self.tasks.index(task), self._depth + len(hidden) - 1, *hidden]

    def check_task(self, task: str) -> None:
        """Raise NnitError if the vocabulary does not have the task."""
        if task not in self.tasks:
            raise NnitError(
                f"this model writes policies for {', '.join(self.tasks)}, not for {task}."
            )

    def extends(self, other: "ArchitectureVocabulary") -> bool:
        """Whether this vocabulary equals `other` apart from further tasks at the end."""
        names = ("patch", "max_width", "max_depth")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and self.tasks[: len(other.tasks)] == other.tasks

    def filled(self, ids: list[int]) -> list[int]:
        """Fill token ids up to `slots` with `none`, for the layers that are missing."""
        return ids + [self.none] * (self.slots - len(ids))

    def decode(self, ids: list[int]) -> tuple[str, tuple[int, ...]] | None:
        """Turn token ids, filled or not, into (task, hidden); None if they form no architecture."""
        task, depth = ids[0] - self._task, ids[1] - self._depth + 1
        widths = ids[2:]
        present = [self.patch <= w <= self.most_units for w in widths]
        if not (0 <= task < len(self.tasks) and 1 <= depth <= len(widths)):
            return None
        if not all(present[:depth]) or any(widths[depth:]):
            return None
        return self.tasks[task], tuple(widths[:depth])

    def allowed(self) -> Tensor:
        """Which ids each slot may hold, bool [2 + largest depth, size]."""
        allowed = torch.zeros(2 + self.depths[-1], self.size, dtype=torch.bool)
        allowed[0, self._task : self.mask] = True
        allowed[1, self._depth : self._task] = True
        allowed[2:, self.patch : self._depth] = True
        allowed[3:, self.none] = True
        return allowed

    def drawable(self) -> Tensor:
        """Which ids each slot of a drawn architecture may hold, bool [slots, size]."""
        drawable = self.allowed()[: self.slots]
        drawable[1, self._depth + self.max_depth :] = False
        drawable[2:, 1 + self.max_width :] = False
        return drawable

    def numbers(self) -> Tensor:
        """The number of each id, float32 [size]: width / `max_width`, depth / 8, otherwise 0."""
        values = torch.zeros(self.size)
        values[1 : self._depth] = torch.arange(1, self._depth) / self.max_width
        values[self._depth : self._task] = torch.tensor(self.depths) / 8
        return values

    def types(self) -> Tensor:
        """The type of each id, int64 [size]: none 0, width 1, depth 2, mask 3, then the tasks.

        All widths share one embedding, as do all depths. They differ only by their number, so that
        the network also understands widths and depths that are not in the training data.
        """
        types = torch.zeros(self.size, dtype=torch.int64)
        types[1 : self._depth], types[self._depth : self._task] = 1, 2
        types[self._task : self.mask] = 4 + torch.arange(len(self.tasks))
        types[self.mask] = 3
        return types
