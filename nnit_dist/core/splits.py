"""Which topologies training may use, and which are kept unseen, by kind."""

import itertools
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from nnit_dist.core.errors import NnitError, nearest
from nnit_dist.core.topology import Hidden

UnseenKind = Literal["combination", "bottleneck", "width", "deeper", "wider"]


UNSEEN_KINDS: tuple[UnseenKind, ...] = ("combination", "bottleneck", "width", "deeper", "wider")


WITHIN: tuple[UnseenKind, ...] = ("combination", "bottleneck", "width")  # the sizes of training


BEYOND: tuple[UnseenKind, ...] = ("deeper", "wider")


DEEPER = 2  # layers that `deeper` topologies have at most beyond those of training


T = TypeVar("T")


def unseen_kind(text: str) -> UnseenKind:
    """`text` as a kind of unseen topologies; NnitError if it is none."""
    for kind in UNSEEN_KINDS:
        if text == kind:
            return kind
    raise NnitError(
        f"there is no kind {text!r} of unseen topologies.{nearest(text, list(UNSEEN_KINDS))}"
    )


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
    trained: Collection[Hidden] = (),
) -> TopologySplit:
    """Split a grid by seed. The same arguments always give the same split.

    What the policies of a population are, `trained`, is left out of the unseen: there may then be
    fewer of a kind than are asked for.

    combination: tuples of the training widths, held out of the grid.
    bottleneck: a narrow layer between two wide ones, of training widths and those between. If any
        are asked for, training has none at all: a whole region of shapes is held out.
    width: tuples with at least one width that no training network has, within the grid's range.
    deeper: training widths, one and two layers more than any training network.
    wider: tuples with at least one width above the grid's maximum (twice it by default).

    Raises:
        NnitError: the grid has fewer topologies of a kind than are asked for.
    """
    rng = random.Random(seed)
    no_bottlenecks = counts.get("bottleneck", 0) > 0
    middle = (min(widths) + max(widths)) / 2
    full = [h for h in grid(widths, depths) if not (no_bottlenecks and is_bottleneck(h, middle))]
    # Depth-1 tuples stay in: holding one out would be a held-out width.
    candidates = [hidden for hidden in full if len(hidden) > 1]
    inner = [w for w in unseen_widths if w <= max(widths)]
    outer = [w for w in unseen_widths if w > max(widths)] or [2 * max(widths)]
    within = grid(widths + inner, depths)
    pools: dict[UnseenKind, list[Hidden]] = {
        "combination": candidates,
        "bottleneck": [h for h in within if is_bottleneck(h, middle)],
        "width": [
            h
            for h in within
            if set(h) & set(inner) and not (no_bottlenecks and is_bottleneck(h, middle))
        ],
        "deeper": [
            hidden
            for more in range(1, DEEPER + 1)  # as many of either depth
            for hidden in _some(grid(widths, [max(depths) + more]), counts.get("deeper", 0), rng)
        ],
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
    seen = [hidden for hidden in full if hidden not in held]
    return TopologySplit(
        seen, {kind: [h for h in found if h not in trained] for kind, found in unseen.items()}
    )


def is_bottleneck(hidden: Hidden, middle: float) -> bool:
    """Whether a layer below `middle` stands between two above it."""
    triples = zip(hidden, hidden[1:], hidden[2:], strict=False)
    return any(inner < middle < min(before, after) for before, inner, after in triples)


def _some(pool: list[Hidden], count: int, rng: random.Random) -> list[Hidden]:
    return rng.sample(pool, min(count, len(pool)))


def spread(things: list[T], count: int) -> list[T]:
    """At most `count` of them, evenly spread over the list."""
    chosen = min(count, len(things))
    return [things[i * len(things) // chosen] for i in range(chosen)]
