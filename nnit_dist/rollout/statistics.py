"""Success statistics: intervals, paired comparisons, and stopping early."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm

STOP_EVERY = 10
STOP_FIRST = 20


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success probability (Wilson 1927).

    Raises:
        ValueError: `successes` is not in [0, `trials`], or there are no trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = norm.ppf(0.5 + confidence / 2)
    p, z2 = successes / trials, z * z / trials
    center = (p + z2 / 2) / (1 + z2)
    half = z * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def cluster_bootstrap(
    values: list[list[float]], confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over all values, resampling whole clusters.

    `values[i]` are the figures of cluster i. Networks of one topology form a cluster: they
    share the topology's difficulty, so they are not independent.

    Raises:
        ValueError: there are no clusters, or one is empty.
    """
    sums, sizes = _sums(values)
    picks = _resample(len(values), resamples, seed)
    return _percentiles(sums[picks].sum(1) / sizes[picks].sum(1), confidence)


def paired_bootstrap(
    ours: list[list[float]],
    theirs: list[list[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference of two means over the same clusters, and its percentile interval.

    `ours[i]` and `theirs[i]` are the figures of two methods on cluster i, measured from the
    same start seeds. A cluster is resampled for both at once, so difficulty that they share
    cancels out. Raises ValueError if the clusters differ in number or one is empty.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} clusters cannot be paired")
    (a, n), (b, m) = _sums(ours), _sums(theirs)
    picks = _resample(len(ours), resamples, seed)
    means = a[picks].sum(1) / n[picks].sum(1) - b[picks].sum(1) / m[picks].sum(1)
    return float(a.sum() / n.sum() - b.sum() / m.sum()), *_percentiles(means, confidence)


def _sums(values: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    if not values or not all(values):
        raise ValueError("every cluster needs at least one value")
    return np.array([np.sum(v) for v in values]), np.array([len(v) for v in values])


def _resample(clusters: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(clusters, size=(resamples, clusters))


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Comparison of two policies from the same start seeds.

    `difference` is the success of the first less that of the second. `only_first` and
    `only_second` count the episodes that only one policy solved. `p_value` is that of McNemar's
    exact test: the probability of a split at least this uneven if both are equally good.
    """

    difference: float
    only_first: int
    only_second: int
    episodes: int
    p_value: float


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Compare two policies episode by episode (McNemar 1947, exact).

    Raises:
        ValueError: there are no episodes, or the numbers of episodes differ.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"{a.size} and {b.size} episodes cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    split = only_a + only_b
    p_value = float(binomtest(only_a, split).pvalue) if split else 1.0
    return Paired((only_a - only_b) / a.size, only_a, only_b, a.size, p_value)


def stop_length(successes: np.ndarray, halfwidth: float) -> int | None:
    """Number of episodes after which a measurement may stop; None if it may not stop yet.

    `successes` [N] are in the order of start seeds. A measurement stops once the half-width of
    the 95% Wilson interval is at most `halfwidth`; this is checked after STOP_FIRST episodes and
    then every STOP_EVERY. Policies near 0 or 1 stop soonest. A lucky start can stop a
    measurement before its mean comes down, so figures are biased (`stopping_bias`).
    """
    totals = np.cumsum(successes)
    for length in range(STOP_FIRST, len(successes) + 1, STOP_EVERY):
        if _halfwidth(int(totals[length - 1]), length) <= halfwidth:
            return length
    return None


@cache
def _halfwidth(successes: int, trials: int) -> float:
    low, high = wilson(successes, trials)
    return (high - low) / 2


def stopping_bias(success: float, episodes: int, halfwidth: float) -> tuple[float, float]:
    """Bias of the measured mean under `stop_length`, and the mean number of episodes.

    `success` is the true probability. The result is exact: it follows the distribution of the
    number of successes among measurements that have not stopped.
    """
    alive = np.zeros(episodes + 1)
    alive[0], estimate, spent = 1.0, 0.0, 0.0
    for length in range(1, episodes + 1):
        alive[1:] = alive[1:] * (1 - success) + alive[:-1] * success
        alive[0] *= 1 - success
        last = length == episodes
        if last or (length >= STOP_FIRST and (length - STOP_FIRST) % STOP_EVERY == 0):
            for count in np.flatnonzero(alive):
                if last or _halfwidth(int(count), length) <= halfwidth:
                    estimate += alive[count] * count / length
                    spent += alive[count] * length
                    alive[count] = 0.0
    return float(estimate - success), float(spent)
