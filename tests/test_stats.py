import numpy as np
import pytest
from scipy.stats import binomtest

from nnit_dist.evaluate.run import summarize
from nnit_dist.evaluate.stats import cluster_bootstrap, wilson


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
            "return": 1.0,
        }

    one = summarize([row(0.9)])
    assert (one["low"], one["high"]) == wilson(18, 20)
    several = summarize([row(value) for value in (0.8, 0.9, 1.0)])
    assert several["low"] < several["success_once"] < several["high"]
    apart = summarize([row(0.8, (16,)), row(1.0, (16,)), row(0.9, (8,))])
    assert (apart["low"], apart["high"]) == cluster_bootstrap([[0.8, 1.0], [0.9]])
