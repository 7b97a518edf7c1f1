"""Streams: reproducible everywhere, and different for every name and key."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnit_dist.core.rng import numpy_stream, stream

KEYS = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (-1,), (-2,), (2**32,), (2**32 - 1,), (-1, -1)]
NAMED = [(name, *key) for name in ("nnit.noise", "nnit.masks") for key in KEYS]


def first(*named) -> list[float]:
    return torch.rand(4, generator=stream(*named), dtype=torch.float64).tolist()


def test_equal_names_and_keys_draw_equal_numbers():
    assert first("nnit.noise", 3, -1) == first("nnit.noise", 3, -1)
    assert (numpy_stream("a", 3).random(4) == numpy_stream("a", 3).random(4)).all()


@pytest.mark.parametrize("draw", [first, lambda *named: numpy_stream(*named).random(4).tolist()])
def test_different_names_or_keys_draw_different_numbers(draw):
    drawn = {named: draw(*named) for named in NAMED}
    for a, b in itertools.combinations(NAMED, 2):
        assert drawn[a] != drawn[b], (a, b)


def test_streams_do_not_depend_on_each_other():
    before = first("a", 1)
    torch.rand(1000, generator=stream("a", 0))
    assert first("a", 1) == before


def test_neighboring_streams_are_uncorrelated():
    rows = np.stack(
        [numpy_stream("a", seed, step).random(500) for seed in (0, 1) for step in (0, 1)]
    )
    off_diagonal = np.corrcoef(rows)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.2


def test_another_process_draws_the_same_numbers():
    code = (
        "import torch; from nnit_dist.core.rng import stream, numpy_stream\n"
        "print(torch.rand(1, generator=stream('a', 7, -3)).item(), numpy_stream('a', 7).random())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    here = torch.rand(1, generator=stream("a", 7, -3)).item(), numpy_stream("a", 7).random()
    assert [float(number) for number in printed] == list(here)


def test_the_numbers_of_a_stream_never_change():
    assert stream("nnit.noise", 0, 1, -2).initial_seed() == 2222825790095501814
    assert numpy_stream("nnit.noise", 0, 1, -2).integers(2**32) == 3067343453


def test_integers_beyond_64_bits_are_refused():
    with pytest.raises(OverflowError):
        stream("a", 2**63)
