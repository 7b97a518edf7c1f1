import numpy as np
import pytest
from scipy.stats import binom, binomtest, bootstrap

from nnit_dist.rollout.statistics import (
    cluster_bootstrap,
    paired,
    paired_bootstrap,
    stop_length,
    stopping_bias,
    wilson,
)
from nnit_dist.rollout.summaries import summarize


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 20), (95, 100), (50, 50)])
def test_wilson_is_that_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="5 successes of 4 trials"):
        wilson(5, 4)


def test_cluster_bootstrap_matches_the_closed_form_for_equal_clusters():
    """With clusters of one value it is the bootstrap of the mean: about 1.96 standard errors."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = cluster_bootstrap([[v] for v in values])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < values.mean() < high


def test_cluster_bootstrap_is_wider_when_topologies_differ():
    rng = np.random.default_rng(1)
    independent = [list(rng.normal(0.5, 0.2, 10)) for _ in range(20)]
    clustered = [[rng.normal(0.5, 0.2)] * 10 for _ in range(20)]
    width = [high - low for low, high in map(cluster_bootstrap, (independent, clustered))]
    assert width[1] > 2 * width[0]


def test_one_topology_or_one_network_has_an_interval_too():
    def row(success, hidden=(16,)):
        low, high = wilson(round(20 * success), 20)
        return {
            "hidden": list(hidden),
            "episodes": 20,
            "success_once": success,
            "success_once_low": low,
            "success_once_high": high,
            "success_at_end": success,
        }

    one = summarize([row(0.9)])
    assert (one["low"], one["high"]) == wilson(18, 20)
    several = summarize([row(value) for value in (0.8, 0.9, 1.0)])
    assert several["low"] < several["success_once"] < several["high"]
    apart = summarize([row(0.8, (16,)), row(1.0, (16,)), row(0.9, (8,))])
    assert (apart["low"], apart["high"]) == cluster_bootstrap([[0.8, 1.0], [0.9]])


def test_paired_bootstrap_is_that_of_scipy():
    rng = np.random.default_rng(2)
    hard = rng.normal(0.7, 0.2, 60)
    ours, theirs = hard + rng.normal(0.05, 0.02, 60), hard + rng.normal(0, 0.02, 60)
    found = paired_bootstrap([[v] for v in ours], [[v] for v in theirs])
    expected = bootstrap(
        (ours, theirs),
        lambda a, b: np.mean(a) - np.mean(b),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found[0] == pytest.approx(np.mean(ours - theirs))
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=5e-4)
    alone = [cluster_bootstrap([[v] for v in side]) for side in (ours, theirs)]
    assert found[2] - found[1] < 0.3 * min(high - low for low, high in alone)


def test_paired_bootstrap_weighs_samples_as_the_mean_over_all_does():
    difference, low, high = paired_bootstrap([[1.0, 0.0, 0.5], [1.0]], [[0.0], [0.0, 0.0]])
    assert difference == pytest.approx(2.5 / 4)
    assert low <= difference <= high
    with pytest.raises(ValueError, match="2 and 1 clusters"):
        paired_bootstrap([[1.0], [1.0]], [[1.0]])


def test_mcnemar_counts_only_the_episodes_that_one_of_two_solves():
    first = [True] * 50 + [True] * 9 + [False] * 2 + [False] * 5
    second = [True] * 50 + [False] * 9 + [True] * 2 + [False] * 5
    found = paired(first, second)
    assert (found.only_first, found.only_second, found.episodes) == (9, 2, 66)
    assert found.difference == pytest.approx(7 / 66)
    # Twice the upper tail of Binomial(11, 1/2) from 9.
    assert found.p_value == pytest.approx(2 * binom.sf(8, 11, 0.5))
    assert paired([True, False], [True, False]).p_value == 1.0


def test_a_measurement_stops_at_the_first_length_that_is_narrow_enough():
    successes = np.ones(100, bool)
    lengths = [n for n in range(20, 101, 10) if wilson(n, n)[1] - wilson(n, n)[0] <= 0.1]
    assert stop_length(successes, 0.05) == lengths[0] == 40
    assert stop_length(successes[:35], 0.05) is None
    assert stop_length(np.arange(100) % 2 == 0, 0.05) is None


@pytest.mark.parametrize("success", [0.5, 0.9, 0.98])
def test_the_bias_of_stopping_early_is_that_of_simulated_measurements(success):
    draws = np.random.default_rng(0).random((4000, 100)) < success
    lengths = [stop_length(draw, 0.05) or 100 for draw in draws]
    means = [draw[:n].mean() for draw, n in zip(draws, lengths, strict=True)]
    bias, episodes = stopping_bias(success, 100, 0.05)
    error = 4 * np.std(means) / np.sqrt(len(means))
    assert bias == pytest.approx(np.mean(means) - success, abs=error)
    assert episodes == pytest.approx(np.mean(lengths), rel=0.02)


def test_a_measurement_that_never_stops_early_is_unbiased():
    assert stopping_bias(0.8, 100, 0.001) == pytest.approx((0.0, 100.0), abs=1e-12)
