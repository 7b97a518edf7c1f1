"""Patches: a policy's weights as a sequence of tokens, and back.

A weight matrix is cut into p x p patches and a bias into runs of p; edges are
padded and the padding is masked. Weights are tokenised in units of
1/sqrt(fan_in), so a token means the same whatever the layer's width. Tokens of
one kind stand together: input patches, hidden patches, output patches, biases.

Torch alone. Shapes: B networks, N tokens, P = p * p values a token.
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
from nnit_dist.core.topology import Topology

BIAS, KINDS = 3, 4  # a patch of weights is of its layer's kind
LAYOUT_CACHE_BYTES = 256 * 2**20  # a process that draws topologies at random meets thousands


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
        """How many tokens a network has."""
        return len(self.kind)

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        return sum(x.nbytes for x in (self.kind, self.layer, self.row, self.col, self.mask))


@cached(LRUCache(LAYOUT_CACHE_BYTES, getsizeof=attrgetter("nbytes")), lock=Lock())
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
    """Networks of the layout's topology -> values [B, N, P]."""
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
    """Inverse of `tokenize`; the padding is dropped."""
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
    """[B, rows, cols] -> [B, N, P], edges padded with zeros."""
    rows, cols = matrix.shape[1:]
    padded = F.pad(matrix, (0, -cols % patch, 0, -rows % patch))
    grid = padded.unflatten(1, (-1, patch)).unflatten(-1, (-1, patch))
    return grid.transpose(2, 3).flatten(1, 2).flatten(2)


class ArchitectureVocabulary:
    """Discrete tokens: task, depth, and one width a layer.

    A width may be any number of units, from one patch up; its id is the number itself. Training
    has them up to `max_width` and depths up to `max_depth`, and architectures are drawn from
    these; what may be asked for reaches to twice the width and `DEEPER` layers more.
    """

    def __init__(self, tasks: list[str], patch: int, max_width: int, max_depth: int) -> None:
        self.tasks, self.patch = tasks, patch
        self.max_width, self.max_depth = max_width, max_depth
        self.most_units = 2 * max_width
        self.depths = list(range(1, max_depth + DEEPER + 1))
        self.slots = 2 + max_depth  # of an architecture that is drawn
        self.none = 0  # the width of a layer that is not there
        self._depth = 1 + self.most_units
        self._task = self._depth + len(self.depths)
        self.mask = self._task + len(tasks)
        self.size = self.mask + 1
        self.types_count = 4 + len(tasks)

    def encode(self, task: str, hidden: tuple[int, ...]) -> list[int]:
        """Token ids of an architecture: 2 + its depth.

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
        """Raise NnitError unless it is one of the model's."""
        if task not in self.tasks:
            raise NnitError(
                f"this model writes policies for {', '.join(self.tasks)}, not for {task}."
            )

    def extends(self, other: "ArchitectureVocabulary") -> bool:
        """Whether it is another's with tasks added at the end, if any."""
        names = ("patch", "max_width", "max_depth")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and self.tasks[: len(other.tasks)] == other.tasks

    def filled(self, ids: list[int]) -> list[int]:
        """Ids with `none` for every layer that is not there: all slots of a drawn architecture."""
        return ids + [self.none] * (self.slots - len(ids))

    def decode(self, ids: list[int]) -> tuple[str, tuple[int, ...]] | None:
        """(task, hidden) of token ids, with or without `none`, or None if they are neither."""
        task, depth = ids[0] - self._task, ids[1] - self._depth + 1
        widths = ids[2:]
        present = [self.patch <= w <= self.most_units for w in widths]
        if not (0 <= task < len(self.tasks) and 1 <= depth <= len(widths)):
            return None
        if not all(present[:depth]) or any(widths[depth:]):
            return None
        return self.tasks[task], tuple(widths[:depth])

    def allowed(self) -> Tensor:
        """bool [2 + deepest, size]: which ids each slot may hold."""
        allowed = torch.zeros(2 + self.depths[-1], self.size, dtype=torch.bool)
        allowed[0, self._task : self.mask] = True
        allowed[1, self._depth : self._task] = True
        allowed[2:, self.patch : self._depth] = True
        allowed[3:, self.none] = True
        return allowed

    def drawable(self) -> Tensor:
        """bool [slots, size]: `allowed` within the range of training."""
        drawable = self.allowed()[: self.slots]
        drawable[1, self._depth + self.max_depth :] = False
        drawable[2:, 1 + self.max_width :] = False
        return drawable

    def numbers(self) -> Tensor:
        """float32 [size]: a width in multiples of `max_width`, a depth in eights, else 0."""
        values = torch.zeros(self.size)
        values[1 : self._depth] = torch.arange(1, self._depth) / self.max_width
        values[self._depth : self._task] = torch.tensor(self.depths) / 8
        return values

    def types(self) -> Tensor:
        """int64 [size]: none 0, width 1, depth 2, mask 3, then the tasks.

        What the network knows of a width or a depth beyond its type is its number: so one that
        training never had means something.
        """
        types = torch.zeros(self.size, dtype=torch.int64)
        types[1 : self._depth], types[self._depth : self._task] = 1, 2
        types[self._task : self.mask] = 4 + torch.arange(len(self.tasks))
        types[self.mask] = 3
        return types
