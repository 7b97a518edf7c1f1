"""Topologies: their shapes, and how they are written."""

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
