"""Topologies as a distribution: what training draws, and by rule what it never sees.

Widths are log-uniform over a range, depths and activations uniform. What is kept unseen is kept out
of training altogether, by rules on an architecture alone, so that two runs of one distribution
agree on it whatever their seeds.
"""

import math
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch

from nnit_dist.core.errors import NnitError
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import (
    ACTIVATIONS,
    MOST_DEPTH,
    MOST_WIDTH,
    Activation,
    Hidden,
    architecture_name,
)

UnseenKind = Literal["width", "combination", "bottleneck", "activation", "wider", "deeper"]
Kind = UnseenKind | Literal["seen"]
UNSEEN_KINDS: tuple[UnseenKind, ...] = get_args(UnseenKind)
BEYOND: tuple[UnseenKind, ...] = ("wider", "deeper")  # the ranges of training
NARROWER = 4  # a bottleneck is at most this share of its neighbors
_ATTEMPTS = 1000  # draws for one architecture, before its kind is taken not to exist

Architecture = tuple[Hidden, Activation]


@dataclass(frozen=True)
class HeldOut:
    """What training never sees of a distribution.

    Attributes:
        width: bands of widths, both ends included.
        combination: share of architectures of two layers and more, chosen by a hash of their name.
        bottleneck: whether to hold out every layer that is at most a quarter of both its neighbors.
        activation: pairs of an activation and a depth that training has, but not together.
    """

    width: tuple[tuple[int, int], ...] = ()
    combination: float = 0.0
    bottleneck: bool = False
    activation: tuple[tuple[Activation, int], ...] = ()


@dataclass(frozen=True)
class TopologyDistribution:
    """Architectures that training draws.

    Attributes:
        widths, depths: least and most of a hidden layer's width, and of hidden layers.

    Raises:
        NnitError: a range is empty or out of bounds, or nothing is left to train on.
    """

    widths: tuple[int, int]
    depths: tuple[int, int]
    activations: tuple[Activation, ...] = ACTIVATIONS
    held_out: HeldOut = HeldOut()

    def __post_init__(self) -> None:
        for name, (low, high), most in (
            ("widths", self.widths, MOST_WIDTH // 2),
            ("depths", self.depths, MOST_DEPTH // 2),
        ):
            if not 1 <= low <= high <= most:
                raise NnitError(f"{name} [{low}, {high}] must go from 1 up, to {most} at most.")
        if not self.activations or len(set(self.activations)) < len(self.activations):
            raise NnitError(f"activations {list(self.activations)} must be some, each once.")
        if not 0 <= self.held_out.combination < 1:
            raise NnitError(
                f"held_out.combination is a share below 1; got {self.held_out.combination}."
            )
        self._check_held_out()
        rng = stream("topologies.check", 0)
        if not any(not self.broken_rules(*self._draw(rng)) for _ in range(_ATTEMPTS)):
            raise NnitError("held_out leaves next to nothing to train on; hold out less.")

    def _check_held_out(self) -> None:
        for low, high in self.held_out.width:
            if not self.widths[0] < low <= high < self.widths[1]:
                raise NnitError(
                    f"held_out.width has the band [{low}, {high}], which does not lie within the "
                    f"widths {list(self.widths)}."
                )
        for activation, depth in self.held_out.activation:
            if activation not in self.activations:
                raise NnitError(f"held_out.activation has {activation}, not in activations.")
            if not self.depths[0] <= depth <= self.depths[1]:
                raise NnitError(
                    f"held_out.activation has depth {depth}, not within {list(self.depths)}."
                )

    def broken_rules(self, hidden: Hidden, activation: Activation) -> frozenset[UnseenKind]:
        """The rules that keep an architecture out of training; none if training draws it."""
        held, broken = self.held_out, set[UnseenKind]()
        if max(hidden) > self.widths[1]:
            broken.add("wider")
        if len(hidden) > self.depths[1]:
            broken.add("deeper")
        if any(low <= width <= high for width in hidden for low, high in held.width):
            broken.add("width")
        if (activation, len(hidden)) in held.activation:
            broken.add("activation")
        if held.bottleneck and has_bottleneck(hidden):
            broken.add("bottleneck")
        if len(hidden) > 1 and _share(architecture_name(hidden, activation)) < held.combination:
            broken.add("combination")
        return frozenset(broken)

    def kind_of(
        self, hidden: Hidden, activation: Activation
    ) -> UnseenKind | Literal["seen"] | None:
        """`seen`, or the one rule that it breaks; None if it breaks several or is too small."""
        broken = self.broken_rules(hidden, activation)
        inside = min(hidden) >= self.widths[0] and len(hidden) >= self.depths[0]
        if not inside or activation not in self.activations or len(broken) > 1:
            return None
        return next(iter(broken), "seen")

    def draw(self, count: int, rng: torch.Generator) -> list[Architecture]:
        """Architectures for training; the same generator draws the same ones."""
        drawn = (one for one in self._draws(rng) if not self.broken_rules(*one))
        return [next(drawn) for _ in range(count)]

    def draw_unseen(
        self, kind: UnseenKind, count: int, seed: int, trained: Collection[Architecture] = ()
    ) -> list[Architecture]:
        """Distinct architectures that break this rule alone, sorted; for measurements.

        Args:
            trained: architectures of the population, which are never unseen.

        Raises:
            NnitError: there are fewer than `count`, or so few that none are found.
        """
        rng = stream(f"topologies.{kind}", seed)
        found, misses = set[Architecture](), 0
        while len(found) < count and misses < _ATTEMPTS:
            one = self._draw(rng, kind)
            fits = self.kind_of(*one) == kind and one not in trained and one not in found
            misses = 0 if fits else misses + 1
            found |= {one} if fits else set()
        if len(found) < count:
            raise NnitError(
                f"{count} unseen topologies of the kind {kind!r} were asked for, but the "
                f"distribution gives only {len(found)}. Ask for fewer, or hold out more of it."
            )
        return sorted(found, key=lambda one: (len(one[0]), one))

    def _draws(self, rng: torch.Generator) -> Iterator[Architecture]:
        while True:
            yield self._draw(rng)

    def _draw(self, rng: torch.Generator, kind: UnseenKind | None = None) -> Architecture:
        """Any architecture of the ranges; for the kinds beyond them, of the next larger ones."""
        (low, high), (shallow, deep) = self.widths, self.depths
        high *= 2 if kind == "wider" else 1
        shallow, deep = (deep + 1, deep + 1) if kind == "deeper" else (shallow, deep)
        depth = shallow + _below(deep + 1 - shallow, rng)
        uniform = torch.rand(depth, generator=rng, dtype=torch.float64).tolist()
        # Each whole width w has the weight log(w + 1) - log(w).
        hidden = tuple(int(low * math.exp(u * math.log((high + 1) / low))) for u in uniform)
        return hidden, self.activations[_below(len(self.activations), rng)]


def has_bottleneck(hidden: Hidden) -> bool:
    """Whether a layer is at most 1/`NARROWER` as wide as the layers before and after it."""
    drops = [NARROWER * after <= before for before, after in pairwise(hidden)]
    rises = [NARROWER * before <= after for before, after in pairwise(hidden)]
    return any(drop and rise for drop, rise in zip(drops, rises[1:], strict=False))


def _below(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=rng))


def _share(name: str) -> float:
    """A number in [0, 1) that only the name determines."""
    return zlib.crc32(name.encode()) / 2**32
