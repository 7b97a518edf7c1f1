"""Success statistics: intervals for one network and for a method's mean over topologies."""

import numpy as np
from scipy.stats import norm


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success probability (Wilson 1927)."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = norm.ppf(0.5 + confidence / 2)
    p, z2 = successes / trials, z * z / trials
    centre = (p + z2 / 2) / (1 + z2)
    half = z * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_bootstrap(
    values: list[list[float]], confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over all values, resampling whole clusters.

    `values[i]` are the figures of cluster i: the networks of one topology, which share
    what is hard about it and so are not independent.
    """
    if not values or not all(values):
        raise ValueError("every cluster needs at least one value")
    sums = np.array([np.sum(cluster) for cluster in values])
    sizes = np.array([len(cluster) for cluster in values])
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
