"""Topologies: their shapes, and how they are written."""

import pytest

from nnit_dist.core.errors import NnitError
from nnit_dist.core.topology import Topology, parse_hidden


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
