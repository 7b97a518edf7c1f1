"""The benchmarks run and measure what they say; their figures are no matter of a test."""

import pyarrow.parquet as pq
import pytest

from nnit_dist.bench.generalization import ABOUT, bench_generalization
from nnit_dist.bench.pool import bench_scale
from nnit_dist.pretrained import shipped

pytestmark = pytest.mark.usefixtures("ray_local")


def test_stand_in_simulators_run_every_rollout_once_and_keep_the_time():
    found = bench_scale(actors=40, networks=20, episodes=30, episode_s=0.05)
    assert found["rollouts"] == 600
    assert found["seconds"] >= found["ideal_s"] == pytest.approx(0.75)
    assert found["driver_ms"] > 0
    assert found["expected_s"] > 0


def test_nnit_is_compared_with_every_baseline_on_topologies_that_the_run_did_not_measure(tmp_path):
    found = bench_generalization(shipped("PushCube-v1"), 2, 1, 1, tmp_path, None)
    assert found["failures"] == {}
    assert {row["method"] for row in found["methods"]} == set(ABOUT)
    rows = pq.read_table(shipped("PushCube-v1") / "evaluate" / "results.parquet").to_pylist()
    known = {tuple(row["hidden"]) for row in rows if row["kind"] == "width"}
    assert not known & {tuple(hidden) for hidden in found["topologies"]["width"]}
    once = {(row["kind"], row["method"]): row["success_once"] for row in found["methods"]}
    assert once["combination", "nnit"] > once["combination", "trained_crop"]
    assert "| combination | NNiT |" in (tmp_path / "generalization.md").read_text()
    assert (tmp_path / "generalization.png").exists()
