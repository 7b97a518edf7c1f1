"""What alignment is compared with: networks trained each on its own, and permutation matching."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnit_dist.baselines.matching import match, permute
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.imitation import imitate


def random_network(topology, seed=0) -> MLPBatch:
    rng = torch.Generator().manual_seed(seed)
    layers = [
        (torch.randn(out, fan_in, generator=rng) * fan_in**-0.5, torch.randn(out, generator=rng))
        for out, fan_in in topology.shapes
    ]
    return MLPBatch.from_layers([layers])


@settings(max_examples=20, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 1000),
)
def test_permuting_neurons_changes_no_output(hidden, seed):
    network, rng = random_network(Topology(5, hidden, 2), seed), np.random.default_rng(seed)
    permuted = permute(network, [rng.permutation(width) for width in hidden])
    obs = torch.randn(1, 9, 5)
    assert torch.allclose(network.forward(obs), permuted.forward(obs), atol=1e-5)


def test_matching_undoes_a_permutation():
    network, rng = random_network(Topology(5, (16, 12, 8), 2)), np.random.default_rng(0)
    shuffled = permute(network, [rng.permutation(width) for width in (16, 12, 8)])
    assert not torch.equal(shuffled.weights[0], network.weights[0])
    matched = match(shuffled, network)
    for (w, b), (w2, b2) in zip(matched.layers(0), network.layers(0), strict=True):
        assert torch.equal(w, w2)
        assert torch.equal(b, b2)


def test_the_first_neurons_of_a_network_find_their_places_in_the_order_of_the_whole():
    whole, kept = random_network(Topology(5, (16,), 2)), np.arange(4)
    (w, b), (last, bias) = whole.layers(0)
    part = [(w[kept], b[kept]), (last[:, kept], bias)]
    shuffled = permute(MLPBatch.from_layers([part]), [np.array([2, 0, 3, 1])])
    for (x, y), (x2, y2) in zip(match(shuffled, whole).layers(0), part, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_independent_networks_imitate_their_teachers_and_share_no_order():
    torch.manual_seed(0)
    linear = [torch.eye(2, 5) * sign for sign in (0.4, -0.4)]
    teachers = MLPBatch.from_layers([[(w, torch.zeros(2))] for w in linear])
    plain = ObservationNormalizer(np.zeros(5, np.float32), np.ones(5, np.float32))
    distillation_data = DistillationData(plain, [torch.randn(400, 5) for _ in linear], teachers)
    topologies = [Topology(5, hidden, 2) for hidden in ((16,), (16,), (8, 12), (16,))]
    teacher_weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    networks = imitate(topologies, teacher_weights, distillation_data, 400, seed=0)
    assert len(networks) == len(topologies)
    for i, (topology, mix) in enumerate(zip(topologies, teacher_weights, strict=True)):
        assert networks.topology(i) == topology
        obs, actions = distillation_data.draw(mix[None], 400, torch.Generator().manual_seed(1))
        assert (networks.select([i]).forward(obs) - actions).square().mean() < 0.02
    first, last = (networks.layers(i)[0][0].flatten() for i in (0, 3))
    assert abs(torch.corrcoef(torch.stack([first, last]))[0, 1]) < 0.5
    again = imitate(topologies, teacher_weights, distillation_data, 400, seed=0)
    assert torch.equal(again.layers(2)[1][0], networks.layers(2)[1][0])


@pytest.mark.parametrize("hidden", [(8,), (16, 8), (32, 32)])
def test_flat_vectors_round_trip_and_their_mask_counts_every_weight(hidden, sampler):
    from nnit_dist.baselines.flat import FlatLayout

    layout, topology = FlatLayout(35, 8, 32, 2), Topology(35, hidden, 8)
    network = random_network(topology)
    values = layout.flatten(topology, network)
    assert values.shape == (1, layout.length)
    assert layout.mask(topology).sum() == topology.num_params
    back = layout.unflatten(topology, values)
    for (w, b), (w2, b2) in zip(network.layers(0), back.layers(0), strict=True):
        assert torch.allclose(w, w2, atol=1e-6)
        assert torch.equal(b, b2)


def test_flat_diffusion_learns_writes_and_has_no_room_beyond_the_largest(sampler):
    from nnit_dist.baselines.flat import FlatDiffusion
    from nnit_dist.core.errors import NnitError
    from nnit_dist.nnit.config import NNiTConfig

    flat = FlatDiffusion(sampler, NNiTConfig(steps=30, lr=3e-3, topologies_per_step=4), 200_000)
    assert abs(flat.parameters - 200_000) < 20_000
    before = float(flat.loss(torch.Generator().manual_seed(0), 64).detach())
    for step in range(30):
        flat.step(step)
    after = float(flat.loss(torch.Generator().manual_seed(0), 64).detach())
    assert after < 0.9 * before
    one, two = flat.generate((24, 16), 2, seed=1)
    assert one.topology.hidden == (24, 16)
    assert not np.array_equal(one.flat(), two.flat())
    assert np.array_equal(flat.generate((24, 16), 1, seed=1)[0].flat(), one.flat())
    with pytest.raises(NnitError, match="has no room for 64"):
        flat.generate((64,), 1)
