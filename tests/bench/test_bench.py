"""The benchmarks run and measure what they say; their figures are no matter of a test."""

import dataclasses

import numpy as np
import pytest
import torch
from support.networks import TASK

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.bench import alignment, memorization, population, train, zoo
from nnit_dist.bench.alignment import bench_alignment
from nnit_dist.bench.generalization import bench_generalization
from nnit_dist.bench.memorization import Counts, bench_memorization
from nnit_dist.bench.pool import bench_scale
from nnit_dist.bench.results import BenchSize
from nnit_dist.bench.scaling import (
    Driver,
    measure_driver,
    measure_store,
    simulate_pool,
    step_over_network,
)
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.splits import UNSEEN_KINDS
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.config import NNiTConfig, TransformerConfig
from nnit_dist.nnit.dataset import AlignedDataset
from nnit_dist.nnit.tokens import detokenize
from nnit_dist.population.config import Recipe

pytestmark = pytest.mark.usefixtures("ray_local")


def test_stand_in_simulators_run_every_rollout_once_and_keep_the_time():
    found = bench_scale(actors=40, networks=20, episodes=30, episode_s=0.05)
    assert found["rollouts"] == 600
    assert found["seconds"] >= found["ideal_s"] == pytest.approx(0.75)
    assert found["driver_ms"] > 0
    assert found["expected_s"] > 0


@pytest.mark.long
def test_ppo_is_measured_beside_the_bare_loop_and_rllibs_own_parts():
    recipe = Recipe(env_steps=400, batch=200, minibatch=100, epochs=1, envs=2)
    rates = population.bench_population(TASK, 0.3, 1, recipe)
    assert set(rates) == set(population.ABOUT)
    assert all(rate > 0 for rate in rates.values())
    curves = population.bench_curves(TASK, recipe, 1)
    assert set(curves) == {"rllib", "trial"}
    assert all(0 <= success <= 1 for (success,) in curves.values())


def test_a_zoo_is_read_in_every_way_and_by_workers_that_share_it(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "A_FILE", 100)
    written, *readings, shared = zoo.bench_zoo(tmp_path, 400)
    assert "400 policies" in written
    assert "in 4 files" in written
    rows = {line.split(": ")[0].strip(): line.split(": ")[1].split(" rows")[0] for line in readings}
    assert rows["all rows"] == rows["all rows, pyarrow.dataset"] == "400"
    some = rows["one task, success of 0.9 and more"]
    assert some == rows["the same, pyarrow.dataset"] == rows["the same, as policies"]
    assert 0 < int(some) < 40
    assert "100, 100, 100, 100 rows" in shared


def test_nnit_is_compared_with_baselines_on_unseen_topologies_of_every_kind(tmp_path):
    run = shipped(TASK)
    found = bench_generalization(run, TASK, list(UNSEEN_KINDS), BenchSize(2, 1, 1), out=tmp_path)
    assert found["failures"] == {}
    seen = HypernetModel.load(run.hypernet()).distribution.seen
    assert set(found["topologies"]) == set(UNSEEN_KINDS)
    held = [tuple(hidden) for kind in found["topologies"].values() for hidden in kind]
    assert not set(held) & set(seen)
    once = {(row["kind"], row["method"]): row["success_once"] for row in found["methods"]}
    assert once["combination", "nnit"] > once["combination", "trained_crop"]
    assert ("wider", "ghn") not in once
    text = (tmp_path / "generalization.md").read_text()
    assert "| combination | NNiT |" in text
    assert "direct GHN query: cannot write any of kind wider." in text
    assert (tmp_path / "generalization.png").exists()


def test_alignment_is_measured_on_five_kinds_of_weights(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("nnit_dist.baselines.trained.INDEPENDENT_STEPS", 3)
    found = bench_alignment(
        small_run, TASK, tmp_path / "baselines", BenchSize(1, 1, 1), out=tmp_path
    )
    weights = found["weights"]
    assert set(weights) == set(alignment.ABOUT)
    assert not found["failures"]
    for row in weights.values():
        assert all(-1 <= value <= 1 for value in row["neighbors"])
        assert all(-1 <= value <= 1 for value in row["similarity"].values())
        assert {row[name]["networks"] for name in ("whole", "mixed", "nnit_width")} == {1}
    # A decoder that smooths writes neighbors alike, one that does not does not.
    assert min(weights["spatial"]["neighbors"]) > 0.3 > max(weights["mlp"]["neighbors"])
    assert "| GHN, spatial decoder |" in (tmp_path / "alignment.md").read_text()
    assert (tmp_path / "alignment.png").exists()


def test_novelty_is_measured_beside_trivial_ways_to_make_networks(tmp_path):
    found = bench_memorization(shipped(TASK), TASK, [(32,)], Counts(16, 3, 2), out=tmp_path)
    kinds = found["kinds"]
    assert found["trained"] == [16]
    assert set(kinds) == set(memorization.ABOUT)
    assert kinds["noise"]["weight_distance"] < kinds["gaussian"]["weight_distance"]
    assert 0 < kinds["fresh"]["action_distance"] < 0.2
    assert kinds["teacher"]["weight_distance_teacher"] > kinds["fresh"]["weight_distance"]
    assert all(0 <= row["failure_overlap"] <= 1 for row in kinds.values())
    assert "| NNiT |" in (tmp_path / "memorization.md").read_text()
    assert (tmp_path / "memorization.png").exists()


def test_networks_that_novelty_is_measured_from_are_those_that_training_had(sampler):
    config = NNiTConfig(topologies_per_step=2, networks_per_topology=4)
    source = AlignedDataset(sampler, config, 0)
    expected = []
    for step in range(6):
        for example in source.examples(step, range(8)):
            if example.layout.topology.hidden == (16, 8) and example.success > 0.5:
                values = source.token_normalizers[0].denormalize(example.x[None], example.layout)
                expected.append(detokenize(values, example.layout))
    assert len(expected) > 3
    found = memorization._networks(source, 0, [(16, 8)], range(6), count=99)[16, 8]
    topology = sampler.topology((16, 8))
    distances = memorization._distances(found, MLPBatch.cat(expected), topology)
    assert distances.shape == (len(expected), len(expected))
    assert np.allclose(np.diag(distances), 0, atol=1e-3)
    assert np.median(distances) > 0.1


def test_the_nearest_other_leaves_oneself_out_and_overlaps_are_of_failures():
    values = np.array([[0.0, 3.0], [5.0, 0.0]], dtype=np.float32)
    assert memorization._least_of_others(values).tolist() == [3, 5]
    assert np.isnan(memorization._least_of_others(values[:1, :1])).all()
    own = np.array([[True, True, False], [False, False, False]])
    known = np.array([[True, False, True]])
    assert memorization._overlaps(own, known).tolist() == [[1 / 3], [0]]


def test_the_training_step_is_measured_beside_the_peak():
    config = NNiTConfig(steps=1000, transformer=TransformerConfig(32, 1, 2), architectures=4)
    size = dataclasses.replace(train.SIZES["pushcube"], config=config)
    found = train.bench_train(size, torch.device("cpu"), 2)
    assert found["real"] > 0.95
    assert found["flops"] > 0
    assert found["network_ms"] <= found["step_ms"]


def test_a_pool_that_is_simulated_is_bound_by_its_simulators_or_by_its_driver():
    idle = simulate_pool(100, 0.05, Driver(0.0, 0.0, 0.0))
    assert 0.85 < idle["simulators"] <= 1
    assert idle["driver"] == 0
    assert idle["rollouts_s"] == pytest.approx(idle["simulators"] * 100 / 0.05, rel=0.05)
    busy = simulate_pool(100, 0.05, Driver(0.0, 0.01, 0.0))
    assert busy["driver"] > 0.9
    assert busy["rollouts_s"] == pytest.approx(100, rel=0.1)
    assert busy["simulators"] < 0.1
    # Each call begins within a network: there are no fewer than that, nor more than one an episode.
    assert busy["rollouts_s"] / 100 < busy["networks_s"] <= 1.01 * busy["rollouts_s"]


def test_another_process_gets_what_was_put():
    store = measure_store("PushCube-v1", networks=5)
    assert 4 * (35 * 64 + 64 * 64 + 64 * 8) < store.network_bytes < 40_000
    assert 0 < store.get_s < 1


def test_gradients_take_their_time_on_the_network():
    assert step_over_network(0.5, 1, 10**6, 1e6) == 0.5
    two, many = (step_over_network(0.5, workers, 10**6, 1e6) for workers in (2, 1000))
    assert two == pytest.approx(1.5, rel=0.01)
    assert many == pytest.approx(2.5, rel=0.01)


def test_the_drivers_cost_is_split_into_calls_and_rollouts(ray_local):
    driver = measure_driver(((4, 0.02), (8, 0.1)), episodes=25)
    assert 0 <= driver.call_s < 0.1
    assert 0 < driver.call_s + driver.rollout_s < 0.1
    assert driver.stored_bytes > 0


def test_refining_is_measured_from_either_start(tmp_path, ray_local):
    from nnit_dist.bench.refine import as_markdown, bench_refine

    figures = bench_refine(
        None, "PushCube-v1", [5, 20], BenchSize(1, 1, 2), sampler_steps=2, out=tmp_path, actors=2
    )
    assert [(row["start"], row["steps"]) for row in figures["refined"]] == [
        ("nnit", 5),
        ("nnit", 20),
        ("random", 5),
        ("random", 20),
    ]
    assert figures["written"]["episodes"] == 4  # of a combination and of a width
    assert figures["failures"] == {}
    assert as_markdown(figures).count("\n| ") == 5
    assert (tmp_path / "refine.png").stat().st_size > 0
