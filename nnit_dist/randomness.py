"""Random numbers that depend on what they are for, and on nothing that ran before."""

import torch


def generator_of(*key: int) -> torch.Generator:
    """A generator of its own for every key, such as (seed, step, number)."""
    return torch.Generator().manual_seed(hash(key) % 2**63)
