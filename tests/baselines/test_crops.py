"""The baselines do what their names say, and sample k depends on (seed, topology, k) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import random_policy

from nnit_dist.baselines.crops import (
    AlignedCrops,
    PatchGaussian,
    TrainedCrops,
    fit_to,
    nearest_topologies,
)
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Topology

WIDTHS = st.lists(st.integers(1, 24), min_size=1, max_size=3)


def fitted(policy, target):
    network = fit_to(MLPBatch.from_policies([policy]), target)
    return Policy(target, [(w.numpy(), b.numpy()) for w, b in network.layers(0)], "t", "x")


@settings(max_examples=40, deadline=None)
@given(hidden=WIDTHS, more=st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_a_policy_and_its_padded_twin_act_alike(hidden, more):
    policy = random_policy(hidden)
    wider = Topology(35, tuple(w + m for w, m in zip(hidden, more, strict=False)), 8)
    twin = fitted(policy, wider)
    obs = np.random.default_rng(0).normal(size=(4, 35)).astype(np.float32)
    assert np.allclose(policy.forward(obs), twin.forward(obs), atol=1e-5)
    back = fitted(twin, policy.topology)
    for (w, b), (v, c) in zip(policy.layers, back.layers, strict=True):
        assert np.array_equal(b, c)
        assert np.allclose(w * (v.flat[0] / w.flat[0]), v, rtol=1e-4)  # cut, and grown alike


def test_the_nearest_topology_is_of_the_same_depth():
    known = [(8,), (16, 8), (64, 64), (32, 16)]
    assert nearest_topologies((16, 16), known, 2) == [(16, 8), (32, 16)]
    with pytest.raises(NnitError, match="no known topology has 3 layers"):
        nearest_topologies((8, 8, 8), known, 1)


@pytest.mark.parametrize("build", [
    lambda s: AlignedCrops(s, 1, "aligned_crop"),
    lambda s: AlignedCrops(s, 3, "crop_average"),
    lambda s: PatchGaussian(s, 8),
    lambda s: TrainedCrops(s, [random_policy((16, 16)), random_policy((24, 8), 1)]),
])  # fmt: skip
@pytest.mark.parametrize("hidden", [(24, 16), (8,)])
def test_samples_fit_their_topology_and_depend_on_their_number_alone(sampler, build, hidden):
    generator = build(sampler)
    three, one = generator.generate(hidden, 3, seed=5), generator.generate(hidden, 1, seed=5)
    assert [p.topology.hidden for p in three] == [hidden] * 3
    assert len({p.id for p in three}) == 3
    assert three[0].fingerprint() == one[0].fingerprint() != three[1].fingerprint()
    assert {p.source for p in three} == {generator.name}
    for policy in three:
        policy.check_finite()


def test_the_crop_of_a_seen_topology_is_one_of_its_networks(sampler):
    """Near to another draw after the same teacher, far from the other teacher's."""
    (crop,) = AlignedCrops(sampler, 1, "aligned_crop").generate((16, 8), 1)
    gaps = [
        np.abs(
            crop.flat() - sampler.policies((16, 8), 1, 0, sampler.single_teacher(i))[0].flat()
        ).mean()
        for i in range(2)
    ]
    assert min(gaps) < 0.3 * max(gaps)


def test_a_patch_that_no_seen_network_has_has_no_gaussian(sampler):
    with pytest.raises(NnitError, match="patches of 24x24 are in no seen network"):
        PatchGaussian(sampler, 8).generate((24, 24), 1)


def test_the_gaussian_has_the_mean_and_spread_of_the_networks_that_it_was_fitted_to(sampler):
    """Of the hidden layer: the first one is folded into raw observations afterwards."""
    drawn = PatchGaussian(sampler, 8).generate((16, 8), 300)
    hidden = torch.tensor(np.stack([policy.layers[1][0] for policy in drawn]))
    patches = []
    for source in ((16, 8), (32, 16)):  # the seen topologies that have these patches
        rng, topology = torch.Generator().manual_seed(3), sampler.topology(source)
        networks = sampler.networks(
            [topology] * 300, sampler.draw_teacher_weights(300, 1.0, rng), [rng] * 300
        )
        patches.append(networks.weights[1][:, :8, :16] * (source[0] / 16) ** 0.5)
    expected = torch.cat(patches)
    assert torch.allclose(hidden.mean(0), expected.mean(0), atol=0.2 * float(expected.std(0).max()))
    assert float(hidden.std(0).mean()) == pytest.approx(float(expected.std(0).mean()), rel=0.15)
