"""The benchmarks run and measure what they say; their figures are no matter of a test."""

import pytest

from nnit_dist.bench.pool import bench_scale

pytestmark = pytest.mark.usefixtures("ray_local")


def test_stand_in_simulators_run_every_rollout_once_and_keep_the_time():
    found = bench_scale(actors=40, networks=20, episodes=30, episode_s=0.05)
    assert found["rollouts"] == 600
    assert found["seconds"] >= found["ideal_s"] == pytest.approx(0.75)
    assert found["driver_ms"] > 0
    assert found["expected_s"] > 0
