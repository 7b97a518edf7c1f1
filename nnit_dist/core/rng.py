"""The same random numbers for the same seed, on every machine and with any number of cores.

`stream` and `numpy_stream` name what is drawn and which one of many:

    >>> rng = stream("nnit.noise", seed, step, example)

Streams of different names or keys are independent, and no stream depends on how much another has
drawn. So work can be split, repeated or resumed without a change in its numbers.
"""

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np
import torch


def stream(name: str, *key: int) -> torch.Generator:
    """A generator on the CPU for `name` and `key`, integers of 64 bits that may be negative.

    torch's CPU generator keeps 32 bits of a seed: of 10,000 streams, two are equal with a
    probability of 1%. `numpy_stream` keeps 128 bits.

    Raises:
        OverflowError: an integer of the key needs more than 64 bits.
    """
    seed = _seed_sequence(name, key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def numpy_stream(name: str, *key: int) -> np.random.Generator:
    """As `stream`, for numbers from numpy."""
    return np.random.default_rng(_seed_sequence(name, key))


def _seed_sequence(name: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    # The length and two words for each integer keep (1,), (1, 0) and (2**32,), (0, 1) apart:
    # `SeedSequence` fills up with zeros, and splits integers into words itself.
    words = np.array(key, dtype="<i8").view("<u4").tolist()
    # An array of 32 bits is taken in 4 microseconds, a list in 10.
    seed = np.array([zlib.crc32(name.encode()), len(key), *words], np.uint32)
    return np.random.SeedSequence(seed)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread: sums over several differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
