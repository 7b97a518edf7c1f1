"""Topologies: what an MLP policy looks like before it has weights.

Also the grid of topologies that a run trains on, and its split into seen and
unseen ones (kinds: combination, width, deeper, wider).
"""

import itertools
import random
from dataclasses import dataclass, field
from typing import Literal

from nnit_dist.errors import NnitError

UnseenKind = Literal["combination", "width", "deeper", "wider"]
UNSEEN_KINDS: tuple[UnseenKind, ...] = ("combination", "width", "deeper", "wider")
Hidden = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Topology:
    """An MLP: `obs_dim` inputs, tanh layers of the `hidden` widths, `act_dim` linear outputs."""

    obs_dim: int
    hidden: Hidden
    act_dim: int
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation != "tanh":
            raise NnitError(f"activation {self.activation!r} is not supported; use 'tanh'.")
        if not self.hidden or min(self.hidden) < 1 or self.obs_dim < 1 or self.act_dim < 1:
            raise NnitError(f"a topology needs at least one layer and positive sizes; got {self}.")

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.obs_dim, *self.hidden, self.act_dim)

    @property
    def depth(self) -> int:
        return len(self.hidden)

    @property
    def num_layers(self) -> int:
        """Weight matrices: hidden layers plus the output layer."""
        return self.depth + 1

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every weight matrix, first layer first."""
        return [(out, fan_in) for fan_in, out in itertools.pairwise(self.dims)]

    @property
    def num_params(self) -> int:
        return sum(out * fan_in + out for out, fan_in in self.shapes)

    @property
    def name(self) -> str:
        return hidden_name(self.hidden)


def hidden_name(hidden: Hidden) -> str:
    """`(40, 56)` -> `40x56`."""
    return "x".join(map(str, hidden))


def parse_hidden(text: str) -> Hidden:
    """`40x56` -> `(40, 56)`."""
    try:
        hidden = tuple(int(width) for width in text.lower().split("x"))
    except ValueError:
        hidden = ()
    if not hidden or min(hidden) < 1:
        raise NnitError(f"cannot read the hidden widths {text!r}; write them as 64 or 40x56.")
    return hidden


@dataclass(frozen=True)
class TopologySplit:
    """Hidden widths that training may use, and those kept for evaluation, by kind."""

    seen: list[Hidden]
    unseen: dict[UnseenKind, list[Hidden]] = field(default_factory=dict)

    def kind_of(self, hidden: Hidden) -> str:
        """`seen`, one of the unseen kinds, or `other` for a topology that is in neither."""
        if hidden in self.seen:
            return "seen"
        return next((kind for kind, held in self.unseen.items() if hidden in held), "other")


def grid(widths: list[int], depths: list[int]) -> list[Hidden]:
    """Every tuple of `widths` at every depth of `depths`, sorted by depth, then widths."""
    return [h for depth in sorted(depths) for h in itertools.product(sorted(widths), repeat=depth)]


def split_topologies(
    widths: list[int],
    depths: list[int],
    unseen_widths: list[int],
    counts: dict[UnseenKind, int],
    seed: int,
) -> TopologySplit:
    """Split a grid by seed. The same arguments always give the same split.

    combination: tuples of the training widths, held out of the grid.
    width: tuples with at least one width that no training network has, within the grid's range.
    deeper: training widths, one layer more than any training network.
    wider: tuples with at least one width above the grid's maximum (up to twice it).
    """
    rng = random.Random(seed)
    full = grid(widths, depths)
    # Depth-1 tuples stay in: holding one out would be a held-out width.
    candidates = [hidden for hidden in full if len(hidden) > 1]
    inner = [w for w in unseen_widths if w <= max(widths)]
    outer = [w for w in unseen_widths if w > max(widths)] or [2 * max(widths)]
    pools: dict[UnseenKind, list[Hidden]] = {
        "combination": candidates,
        "width": [h for h in grid(widths + inner, depths) if set(h) & set(inner)],
        "deeper": grid(widths, [max(depths) + 1]),
        "wider": [h for h in grid(widths + outer, depths) if set(h) & set(outer)],
    }
    unseen: dict[UnseenKind, list[Hidden]] = {}
    for kind in UNSEEN_KINDS:
        wanted, pool = counts.get(kind, 0), pools[kind]
        if wanted > len(pool):
            raise NnitError(
                f"topologies.unseen.{kind} asks for {wanted} topologies, but widths {widths}, "
                f"unseen widths {unseen_widths} and depths {depths} give only {len(pool)}."
            )
        if wanted:
            unseen[kind] = sorted(rng.sample(pool, wanted), key=lambda h: (len(h), h))
    held = set(unseen.get("combination", []))
    return TopologySplit(seen=[h for h in full if h not in held], unseen=unseen)
