"""The split of topologies into those that training may use and those kept unseen, by kind."""

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
DEEPER = 2  # `deeper` topologies have up to this many layers more than the deepest of training

T = TypeVar("T")


def unseen_kind(text: str) -> UnseenKind:
    """`text` as a kind of unseen topologies; NnitError if there is no such kind."""
    for kind in UNSEEN_KINDS:
        if text == kind:
            return kind
    raise NnitError(
        f"there is no kind {text!r} of unseen topologies.{nearest(text, list(UNSEEN_KINDS))}"
    )


@dataclass(frozen=True)
class TopologySplit:
    """Topologies that training may use, and by kind those kept for evaluation."""

    seen: list[Hidden]
    unseen: dict[UnseenKind, list[Hidden]] = field(default_factory=dict)

    def kind_of(self, hidden: Hidden) -> str:
        """`seen`, an unseen kind, or `other` for a topology outside the split."""
        if hidden in self.seen:
            return "seen"
        kinds = (kind for kind, topologies in self.unseen.items() if hidden in topologies)
        return next(kinds, "other")


def grid(widths: list[int], depths: list[int]) -> list[Hidden]:
    """All tuples of `widths` with the lengths `depths`, sorted by depth, then widths."""
    return [h for depth in sorted(depths) for h in itertools.product(sorted(widths), repeat=depth)]


def split_topologies(
    widths: list[int],
    depths: list[int],
    *,
    unseen_widths: list[int],
    counts: dict[UnseenKind, int],
    seed: int,
    trained: Collection[Hidden] = (),
) -> TopologySplit:
    """Split the grid of `widths` and `depths`. The same arguments always give the same split.

    The unseen kinds:
        combination: tuples of training widths, held out of the grid.
        bottleneck: a narrow layer between two wide ones, of training widths or those between. If
            any are asked for, training has no bottleneck at all.
        width: tuples with a width that no training network has, within the range of the grid.
        deeper: tuples of training widths with one or two layers more than any training network.
        wider: tuples with a width above the grid's maximum; by default twice the maximum.

    Args:
        unseen_widths: the widths of `width` and `wider`.
        counts: how many topologies of each kind to keep unseen.
        trained: topologies of the population. They are never unseen, so there may be fewer of a
            kind than `counts` says.

    Raises:
        NnitError: the grid has fewer topologies of a kind than `counts` says.
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
            for extra in range(1, DEEPER + 1)  # as many of either depth
            for hidden in _some(grid(widths, [max(depths) + extra]), counts.get("deeper", 0), rng)
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
    untrained = {
        kind: [hidden for hidden in topologies if hidden not in trained]
        for kind, topologies in unseen.items()
    }
    return TopologySplit(seen, untrained)


def is_bottleneck(hidden: Hidden, middle: float) -> bool:
    """Whether a layer narrower than `middle` lies between two wider than it."""
    triples = zip(hidden, hidden[1:], hidden[2:], strict=False)
    return any(inner < middle < min(before, after) for before, inner, after in triples)


def _some(pool: list[Hidden], count: int, rng: random.Random) -> list[Hidden]:
    return rng.sample(pool, min(count, len(pool)))


def spread(items: list[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spaced and in order."""
    chosen = min(count, len(items))
    return [items[i * len(items) // chosen] for i in range(chosen)]
