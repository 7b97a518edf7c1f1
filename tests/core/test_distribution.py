"""Topologies as a distribution: what is drawn, and what never is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnit_dist.core.distribution import (
    UNSEEN_KINDS,
    HeldOut,
    TopologyDistribution,
    has_bottleneck,
)
from nnit_dist.core.errors import NnitError
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import ACTIVATIONS

WIDE = TopologyDistribution(
    (8, 512),
    (1, 6),
    held_out=HeldOut(
        width=((22, 27), (44, 53), (88, 107), (180, 215)),
        combination=0.1,
        bottleneck=True,
        activation=(("relu", 5),),
    ),
)


def test_training_draws_widths_evenly_on_a_logarithmic_scale():
    free = TopologyDistribution((8, 511), (1, 6))
    drawn = free.draw(4000, stream("test", 0))
    widths = np.array([width for hidden, _ in drawn for width in hidden])
    assert (widths.min(), widths.max()) == (8, 511)
    octaves = np.histogram(np.log2(widths), bins=range(3, 10))[0] / len(widths)
    assert np.allclose(octaves, 1 / 6, atol=0.015)
    for count in np.unique([len(hidden) for hidden, _ in drawn], return_counts=True)[1]:
        assert count == pytest.approx(4000 / 6, rel=0.15)
    assert {activation for _, activation in drawn} == set(ACTIVATIONS)


def test_training_never_sees_what_is_held_out():
    for hidden, activation in WIDE.draw(3000, stream("test", 1)):
        assert not WIDE.broken_rules(hidden, activation)
        assert WIDE.kind_of(hidden, activation) == "seen"
        assert not any(low <= w <= high for w in hidden for low, high in WIDE.held_out.width)
        assert not has_bottleneck(hidden)
        assert (activation, len(hidden)) != ("relu", 5)
        assert max(hidden) <= 512
        assert len(hidden) <= 6


@pytest.mark.parametrize("kind", UNSEEN_KINDS)
def test_an_unseen_topology_breaks_one_rule(kind):
    found = WIDE.draw_unseen(kind, 48, seed=0)
    assert len(set(found)) == 48
    assert all(WIDE.broken_rules(*one) == {kind} for one in found)
    assert found == WIDE.draw_unseen(kind, 48, seed=0)
    assert found != WIDE.draw_unseen(kind, 48, seed=1)
    assert not set(found) & set(WIDE.draw(2000, stream("test", 2)))
    others = WIDE.draw_unseen(kind, 48, seed=0, trained=found[:10])
    assert not set(others) & set(found[:10])
    if kind == "wider":
        assert max(max(hidden) for hidden, _ in found) <= 1024
    if kind == "deeper":
        assert {len(hidden) for hidden, _ in found} == {7}


def test_a_tenth_of_combinations_is_held_out():
    free = TopologyDistribution((8, 512), (2, 6))
    drawn = free.draw(4000, stream("test", 3))
    held = [one for one in drawn if "combination" in WIDE.broken_rules(*one)]
    assert len(held) / len(drawn) == pytest.approx(0.1, abs=0.02)
    single = [((width,), "tanh") for width in range(8, 513)]
    assert not any("combination" in WIDE.broken_rules(*one) for one in single)


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ((64, 16, 64), True),
        ((64, 17, 64), False),
        ((16, 64), False),
        ((64, 16), False),
        ((64, 64, 16, 128, 64), True),
        ((64, 16, 16, 64), False),
        ((8,), False),
    ],
)
def test_a_bottleneck_is_a_quarter_of_both_neighbors(hidden, expected):
    assert has_bottleneck(hidden) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=9), st.sampled_from(ACTIVATIONS))
def test_every_architecture_is_seen_or_unseen_for_one_reason_or_neither(hidden, activation):
    hidden = tuple(hidden)
    kind, broken = WIDE.kind_of(hidden, activation), WIDE.broken_rules(hidden, activation)
    if kind == "seen":
        assert not broken
    elif kind is not None:
        assert broken == {kind}
    else:
        assert len(broken) > 1 or min(hidden) < 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widths": (64, 8)}, "must go from 1 up"),
        ({"widths": (8, 10**6)}, "to 8192 at most"),
        ({"depths": (0, 3)}, "must go from 1 up"),
        ({"activations": ()}, "must be some"),
        ({"activations": ("tanh", "tanh")}, "each once"),
        ({"held_out": HeldOut(width=((4, 9),))}, "does not lie within"),
        ({"held_out": HeldOut(combination=1.0)}, "a share below 1"),
        ({"held_out": HeldOut(activation=(("elu", 2),))}, "elu, not in activations"),
        ({"held_out": HeldOut(activation=(("tanh", 9),))}, "has depth 9"),
        ({"held_out": HeldOut(width=((9, 127),))}, "next to nothing to train on"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(change, expected):
    given = {"widths": (8, 128), "depths": (3, 4), "activations": ("tanh",)} | change
    with pytest.raises(NnitError, match=expected):
        TopologyDistribution(**given)


def test_more_unseen_topologies_than_there_are_is_refused():
    few = TopologyDistribution((8, 10), (1, 1), ("tanh",), HeldOut(width=((9, 9),)))
    assert few.draw_unseen("width", 1, seed=0) == [((9,), "tanh")]
    with pytest.raises(NnitError, match="gives only 1"):
        few.draw_unseen("width", 2, seed=0)
    with pytest.raises(NnitError, match="gives only 0"):
        few.draw_unseen("bottleneck", 1, seed=0)
