import pytest
import torch

from nnit_dist.baselines.matching import permute
from nnit_dist.bench.alignment import mix_patches
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.decoders import smooth_noise
from nnit_dist.hypernet.metrics import neighbor_correlation, neuron_similarity


def random_network(topology, seed=0) -> MLPBatch:
    rng = torch.Generator().manual_seed(seed)
    layers = [
        (
            torch.randn(out, fan_in, generator=rng) * fan_in**-0.5,
            torch.randn(out, generator=rng) * 0.1,
        )
        for out, fan_in in topology.shapes
    ]
    return MLPBatch.from_layers([layers])


def test_neighbors_correlate_in_smooth_matrices_along_the_axis_that_is_smooth():
    topology = Topology(64, (64, 64), 8)
    rough = MLPBatch.cat([random_network(topology, seed) for seed in range(4)])
    assert neighbor_correlation(rough) == pytest.approx((0, 0), abs=0.05)
    field = smooth_noise(1, 1, 64, 6.0)[0, 0]
    both = [(field, torch.zeros(64))] * 2 + [(field[:8], torch.zeros(8))]
    assert min(neighbor_correlation(MLPBatch.from_layers([both]))) > 0.7
    rows = MLPBatch.from_layers([[(field[torch.randperm(64)], torch.zeros(64))] * 3])
    assert neighbor_correlation(rows)[0] < 0.3
    assert neighbor_correlation(rows)[1] > 0.7


def test_neurons_are_like_themselves_and_like_no_others():
    topology, obs = Topology(10, (32, 32), 4), torch.randn(500, 10)
    network = random_network(topology)
    shuffled = permute(network, [torch.randperm(32).numpy() for _ in range(2)])
    assert neuron_similarity(network, network, obs) == pytest.approx(1, abs=1e-5)
    assert abs(neuron_similarity(network, shuffled, obs)) < 0.25
    (w0, b0), (w1, b1), (w2, b2) = network.layers(0)
    narrow = MLPBatch.from_layers([[(w0[:8], b0[:8]), (w1[:8, :8], b1[:8]), (w2[:, :8], b2)]])
    assert neuron_similarity(network, narrow, obs) > 0.6
    beside = MLPBatch.cat([random_network(Topology(20, (64, 8, 8), 4)), network, narrow])
    pair = beside.select([1]), beside.select([2])
    alone = neuron_similarity(network, narrow, obs)
    assert neuron_similarity(*pair, obs) == pytest.approx(alone, abs=1e-5)


def test_mixed_patches_come_from_either_network():
    topology, rng = Topology(8, (16, 16), 8), torch.Generator().manual_seed(0)
    one, other = random_network(topology, 1), random_network(topology, 2)
    mixed = mix_patches(topology, one, other, 8, rng=rng)
    from_one, from_other = (
        torch.cat(
            [m.isclose(w).flatten() for m, w in zip(mixed.weights, source.weights, strict=True)]
        )
        for source in (one, other)
    )
    assert (from_one | from_other).all()
    assert 0.2 < from_one.float().mean() < 0.8
    same = mix_patches(topology, one, one, 8, rng=rng)
    obs = torch.randn(1, 5, 8)
    assert torch.allclose(same.forward(obs), one.forward(obs), atol=1e-6)
