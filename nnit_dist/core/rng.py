"""The same numbers for the same seed, wherever they are drawn and however many cores there are."""

import contextlib
from collections.abc import Iterator

import torch


def generator_of(*key: int) -> torch.Generator:
    """A generator of its own for every key, such as (seed, step, number)."""
    return torch.Generator().manual_seed(hash(key) % 2**63)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread: sums over several differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
