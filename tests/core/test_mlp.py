"""A batch of networks computes what each of them does alone, whatever is beside it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import TASK, random_policy

from nnit_dist.core.mlp import ACTIVATION_FUNCTIONS, MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Topology

MODULES = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "elu": torch.nn.ELU,
    "silu": torch.nn.SiLU,
}
INFO = TaskInfo(TASK, "pd_joint_delta_pos", 35, 8, 50)
hiddens = st.lists(st.integers(1, 40), min_size=1, max_size=4)
dims = st.lists(st.integers(1, 12), min_size=2, max_size=6)
networks_of_dims = st.lists(st.tuples(dims, st.sampled_from(list(MODULES))), min_size=1, max_size=6)


def modules(sizes: list[int], activation: str) -> torch.nn.Sequential:
    """A network of torch's own modules."""
    layers: list[torch.nn.Module] = []
    for fan_in, out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(fan_in, out), MODULES[activation]()]
    return torch.nn.Sequential(*layers[:-1])


def layers_of(network: torch.nn.Sequential) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(m.weight.detach(), m.bias.detach()) for m in network if hasattr(m, "weight")]


def batch_of(networks: list[torch.nn.Sequential], activations: list[str]) -> MLPBatch:
    return MLPBatch.from_layers([layers_of(network) for network in networks], activations)


def test_every_activation_maps_zero_to_zero_and_is_torchs_own():
    values = torch.linspace(-50, 50, 101)
    assert set(ACTIVATION_FUNCTIONS) == set(MODULES)
    for name, function in ACTIVATION_FUNCTIONS.items():
        assert function(torch.zeros(1)) == 0
        assert torch.equal(function(values), MODULES[name]()(values))


@settings(max_examples=60, deadline=None)
@given(described=networks_of_dims, seed=st.integers(0, 99))
def test_networks_of_any_depth_width_and_activation_act_together_as_alone(described, seed):
    torch.manual_seed(seed)
    alone = [modules(*own) for own in described]
    networks = batch_of(alone, [activation for _, activation in described])
    obs = torch.zeros(len(alone), 7, max(sizes[0] for sizes, _ in described))
    for row, (sizes, _) in zip(obs, described, strict=True):
        row[:, : sizes[0]] = torch.randn(7, sizes[0])
    outputs, hidden = networks.forward(obs), networks.hidden_activations(obs)
    assert outputs.shape == (len(alone), 7, max(sizes[-1] for sizes, _ in described))
    assert networks.depths.tolist() == [len(sizes) - 2 for sizes, _ in described]
    assert networks.act_dims.tolist() == [sizes[-1] for sizes, _ in described]
    for i, (network, (sizes, _)) in enumerate(zip(alone, described, strict=True)):
        own = obs[i, :, : sizes[0]]
        assert torch.allclose(outputs[i, :, : sizes[-1]], network(own), atol=1e-5)
        assert not outputs[i, :, sizes[-1] :].any()
        for layer, values in enumerate(hidden):
            width = sizes[layer + 1] if layer + 2 < len(sizes) else 0
            expected = network[: 2 * layer + 2](own)[:, :width]
            assert torch.allclose(values[i, :, :width], expected, atol=1e-5)
            assert not values[i, :, width:].any()


def test_gradients_are_those_of_each_network_alone_and_padding_has_none():
    torch.manual_seed(0)
    described = [([5, 8, 3], "tanh"), ([5, 4, 9, 3], "silu"), ([4, 6, 2], "relu"), ([5, 2], "elu")]
    alone = [modules(*own) for own in described]
    networks = batch_of(alone, [activation for _, activation in described])
    parameters = [x.requires_grad_() for x in (*networks.weights, *networks.biases)]
    obs = torch.randn(4, 20, 5)
    obs[2, :, 4] = 0
    networks.forward(obs).square().sum().backward()
    layers = len(networks.weights)
    gradients = [x.grad for x in parameters]
    grads = replace(networks, weights=gradients[:layers], biases=gradients[layers:])
    for i, (network, (sizes, _)) in enumerate(zip(alone, described, strict=True)):
        network(obs[i, :, : sizes[0]]).square().sum().backward()
        linears = [m for m in network if hasattr(m, "weight")]
        for linear, (weight, bias) in zip(linears, grads.layers(i), strict=True):
            assert torch.allclose(weight, linear.weight.grad, atol=1e-4)
            assert torch.allclose(bias, linear.bias.grad, atol=1e-4)
    own = sum(int((p.grad != 0).sum()) for network in alone for p in network.parameters())
    assert sum(int((gradient != 0).sum()) for gradient in gradients) == own


def test_with_one_activation_only_that_one_is_computed(monkeypatch):
    networks = MLPBatch.full([Topology(5, (8,), 2), Topology(5, (4, 4), 2)], 0.1)
    calls = []
    tanh = torch.tanh
    monkeypatch.setattr(
        "nnit_dist.core.mlp._FUNCTIONS",
        [lambda x: calls.append(0) or tanh(x), *[pytest.fail] * (len(ACTIVATION_FUNCTIONS) - 1)],
    )
    networks.forward(torch.randn(2, 3, 5))
    assert calls == [0, 0]


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_policies_round_trip_with_and_without_a_normalizer(hidden):
    policies = [random_policy(widths, seed, f"p{seed}") for seed, widths in enumerate(hidden)]
    ids, metadata = [policy.id for policy in policies], [{"n": p.id} for p in policies]
    networks = MLPBatch.from_policies(policies)
    assert [networks.topology(i) for i in range(len(networks))] == [p.topology for p in policies]
    back = networks.to_policies(task=INFO, source="rllib", ids=ids, metadata=metadata)
    for policy, own, expected in zip(back, policies, metadata, strict=True):
        assert np.array_equal(policy.flat(), own.flat())
        assert (policy.id, policy.source, policy.task) == (own.id, "rllib", TASK)
        assert (policy.control_mode, policy.metadata) == (INFO.control_mode, expected)
    rng = np.random.default_rng(0)
    norm = ObservationNormalizer.fit(rng.normal(2, 3, (100, 35)).astype(np.float32))
    normalized = MLPBatch.from_policies(policies, norm)
    obs = rng.normal(2, 3, (6, 35)).astype(np.float32)
    inputs = torch.from_numpy(norm.apply(obs)).expand(len(policies), -1, -1)
    outputs = normalized.forward(inputs).numpy()
    folded = normalized.to_policies(task=INFO, source="x", ids=ids, normalizer=norm)
    for output, policy, own in zip(outputs, folded, policies, strict=True):
        assert np.allclose(output, own.forward(obs), atol=1e-3)
        assert np.allclose(policy.forward(obs), own.forward(obs), atol=1e-3)


def random_networks() -> tuple[list[torch.nn.Sequential], MLPBatch]:
    torch.manual_seed(0)
    described = [([9, 8, 3], "relu"), ([9, 20, 16, 12, 3], "tanh"), ([9, 16, 8, 3], "tanh")]
    alone = [modules(*own) for own in described]
    return alone, batch_of(alone, [activation for _, activation in described])


@pytest.mark.parametrize("chosen", [[2, 0, 2], [0], [1], torch.tensor([1, 2]), slice(0, 3, 2)])
def test_those_that_are_selected_act_as_before_and_can_be_cropped_for_themselves(chosen):
    alone, networks = random_networks()
    indices = torch.arange(3)[chosen].tolist()
    some = networks.select(chosen)
    obs = torch.randn(len(indices), 5, 9)
    assert len(some) == len(indices)
    expected = torch.stack([alone[i](own) for i, own in zip(indices, obs, strict=True)])
    assert torch.allclose(some.forward(obs), expected, atol=1e-6)
    some = some.cropped()
    assert torch.allclose(some.forward(obs), expected, atol=1e-6)
    assert len(some.weights) == 1 + max(int(networks.depths[i]) for i in indices)
    for i, index in enumerate(indices):
        for one, other in zip(some.layers(i), networks.layers(index), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    widest = [max(alone[i][0].out_features for i in indices), alone[0][0].in_features]
    assert list(some.weights[0].shape[1:]) == widest


def test_batches_that_are_put_together_hold_the_same_networks():
    alone, networks = random_networks()
    parts = [networks.select([0]), networks.select([2, 1])]
    together = MLPBatch.cat(parts)
    obs = torch.randn(3, 5, 9)
    expected = torch.stack([alone[i](own) for i, own in zip((0, 2, 1), obs, strict=True)])
    assert torch.allclose(together.forward(obs), expected, atol=1e-6)
    again = together.select([0, 2, 1])
    for one, other in (
        (again.weights, networks.weights),
        (again.biases, networks.biases),
        ([again.shapes], [networks.shapes]),
        ([again.activations], [networks.activations]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    before = networks.weights[0].clone()
    MLPBatch.cat([networks]).weights[0].zero_()
    assert torch.equal(networks.weights[0], before)


def test_more_padding_than_is_needed_changes_nothing_and_can_be_cropped():
    _, networks = random_networks()
    pad = torch.nn.functional.pad
    wide = replace(
        networks,
        weights=[pad(w, (0, 32 - w.shape[2], 0, 32 - w.shape[1])) for w in networks.weights],
        biases=[pad(b, (0, 32 - b.shape[1])) for b in networks.biases],
    )
    obs = torch.randn(3, 5, 9)
    assert torch.allclose(wide.forward(obs), networks.forward(obs), atol=1e-6)
    cropped = wide.cropped()
    assert [w.shape for w in cropped.weights] == [w.shape for w in networks.weights]
    assert all(torch.equal(a, b) for a, b in zip(cropped.weights, networks.weights, strict=True))


def test_noise_has_the_asked_size_in_every_matrix_and_vector():
    rng = torch.Generator().manual_seed(0)
    shapes = [[(64, 64)], [(16, 30), (20, 16)]]
    networks = MLPBatch.from_layers(
        [
            [(3 * torch.randn(*s, generator=rng), torch.randn(s[0], generator=rng)) for s in own]
            for own in shapes
        ]
    )
    noise = MLPBatch.from_layers(
        [
            [(torch.randn(*s, generator=rng), torch.randn(s[0], generator=rng)) for s in own]
            for own in shapes
        ]
    )
    noisy = networks.add_noise(0.1, noise)
    for network, own in enumerate(shapes):
        layers = zip(
            networks.layers(network), noisy.layers(network), noise.layers(network), strict=True
        )
        assert len(noisy.layers(network)) == len(own)
        for (clean, bias), (weight, noisy_bias), (drawn, drawn_bias) in layers:
            assert (weight - clean).std() / clean.std() == pytest.approx(0.1, rel=0.15)
            rms = clean.square().mean().sqrt()
            assert torch.allclose(weight - clean, 0.1 * rms * drawn, atol=1e-5)
            rms = bias.square().mean().sqrt()
            assert torch.allclose(noisy_bias - bias, 0.1 * rms * drawn_bias, atol=1e-6)
    padding = MLPBatch.cat([noisy, networks.select([1])]).weights[0][1:, 16:]
    assert not padding.any()


def test_noise_may_be_padded_less_than_the_networks():
    topology, rng = Topology(5, (8, 4), 2), torch.Generator().manual_seed(0)
    networks, noise = (MLPBatch.randn(topology, 3, rng) for _ in range(2))
    beside = MLPBatch.cat([networks, MLPBatch.full([Topology(9, (12, 12), 6)], 1.0)])
    wide = replace(
        beside,
        weights=[w[:3] for w in beside.weights],
        biases=[b[:3] for b in beside.biases],
        shapes=beside.shapes[:3],
        activations=beside.activations[:3],
    )
    expected, noisy = networks.add_noise(0.5, noise), wide.add_noise(0.5, noise)
    assert noisy.weights[0].shape == (3, 12, 9)
    for one, other in zip(expected.weights, noisy.cropped().weights, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_random_weights_are_drawn_layer_by_layer_weights_first():
    topology = Topology(5, (8, 4), 2)
    rng = torch.Generator().manual_seed(3)
    expected = [
        (torch.randn(2, out, fan_in, generator=rng), torch.randn(2, out, generator=rng))
        for out, fan_in in topology.shapes
    ]
    drawn = MLPBatch.randn(topology, 2, torch.Generator().manual_seed(3))
    for weight, bias, (w, b) in zip(drawn.weights, drawn.biases, expected, strict=True):
        assert torch.equal(weight, w)
        assert torch.equal(bias, b)
    assert [drawn.topology(i) for i in range(2)] == [topology] * 2


def test_full_networks_are_the_value_wherever_they_have_a_weight():
    topologies = [Topology(5, (8, 4), 2), Topology(3, (6,), 4)]
    ones = MLPBatch.full(topologies, 1.0)
    for i, topology in enumerate(topologies):
        count = sum(int(x[i].sum()) for x in (*ones.weights, *ones.biases))
        assert count == topology.num_params
        assert [tuple(w.shape) for w, _ in ones.layers(i)] == topology.shapes
    assert (ones.obs_dim, ones.act_dim) == (5, 4)
