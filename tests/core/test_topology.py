"""Topologies: their shapes, and how they are written."""

import numpy as np
import pytest

from nnit_dist.core.errors import NnitError
from nnit_dist.core.topology import ACTIVATIONS, Topology, parse_architecture, parse_hidden


def test_shapes_and_parameters_of_an_mlp():
    topology = Topology(35, (64, 16), 8)
    assert topology.shapes == [(64, 35), (16, 64), (8, 16)]
    assert topology.num_params == 64 * 35 + 64 + 16 * 64 + 16 + 8 * 16 + 8


@pytest.mark.parametrize("text", ["", "40x", "axb", "0x8", "-8"])
def test_unreadable_widths(text):
    with pytest.raises(NnitError, match="write them as 64 or 40x56"):
        parse_hidden(text)


def test_widths_are_read():
    assert parse_hidden("40x56") == (40, 56)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_architecture_is_named_and_read_with_its_activation(activation):
    name = Topology(35, (40, 56), 8, activation).name
    assert name == ("40x56" if activation == "tanh" else f"40x56-{activation}")
    assert parse_architecture(name) == ((40, 56), activation)


@pytest.mark.parametrize("text", ["40x56-", "40x56-rleu", "40x56-relu-relu", "-relu", "relu"])
def test_unreadable_architectures(text):
    with pytest.raises(NnitError, match="activation|hidden widths"):
        parse_architecture(text)


def test_an_unknown_activation_names_those_there_are():
    with pytest.raises(NnitError, match="use tanh, relu, elu, silu. Did you mean relu or elu"):
        Topology(35, (8,), 8, "rleu")


def test_equal_topologies_are_equal_whatever_numbers_they_are_made_of():
    plain = Topology(35, (16, 8), 8)
    for hidden in ([16, 8], np.array([16, 8]), (np.int32(16), np.int64(8))):
        assert Topology(np.int64(35), hidden, 8) == plain
        assert repr(Topology(35, hidden, 8)) == repr(plain)
    for wrong in ((16.5,), ("16",), (float("nan"),), (None,)):
        with pytest.raises(NnitError, match="whole numbers"):
            Topology(35, wrong, 8)
    for wrong in (None, 3):
        with pytest.raises(NnitError, match="no activation"):
            Topology(35, (8,), 8, wrong)
