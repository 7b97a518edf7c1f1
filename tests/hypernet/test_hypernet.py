import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.networks import changed_task, distiller_of, random_policy

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.decoders import smooth_noise
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents, action_error, draw_teacher_weights
from nnit_dist.hypernet.model import HypernetModel, Teacher
from nnit_dist.hypernet.modes import average, largest_behavior_mode
from nnit_dist.training.sampling import jitter_condition, vary_widths

CONFIG = GHNConfig(latent_dim=4, embed_dim=16, channels=[8, 8])
HIDDEN = [(8,), (32, 8), (24, 16, 32), (13, 7)]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_layers_have_the_shapes_of_the_topology(hidden):
    topology = Topology(35, hidden, 8)
    networks = GHN(CONFIG, 35, 8, 32)([(topology, torch.randn(3, 4))])
    assert [tuple(w.shape) for w in networks.weights] == [(3, *shape) for shape in topology.shapes]
    assert [tuple(b.shape) for b in networks.biases] == [(3, out) for out, _ in topology.shapes]
    assert [networks.topology(i) for i in range(3)] == [topology] * 3


def test_generated_networks_keep_signals_alive_at_the_start():
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(), 35, 8, 64)
    networks = ghn([(Topology(35, (64, 64, 64), 8), torch.randn(8, 8))])
    outputs = networks.forward(torch.randn(8, 200, 35))
    assert 0.05 < outputs.std() < 20


def test_a_network_does_not_depend_on_what_is_generated_beside_it():
    ghn = GHN(CONFIG, 35, 8, 32)
    z, one, other = torch.randn(1, 4), Topology(35, (16, 8), 8), Topology(35, (32,), 8)
    alone = ghn([(one, z)])
    beside = ghn([(other, torch.randn(5, 4)), (one, torch.cat([z, torch.randn(2, 4)]))])
    for (w, b), (w2, b2) in zip(alone.layers(0), beside.layers(5), strict=True):
        assert torch.allclose(w, w2, atol=1e-5)
        assert torch.allclose(b, b2, atol=1e-5)


@pytest.mark.parametrize("part", [(16, 16), (16, 48), (40, 8), (33, 64), (1, 1)])
def test_decoding_a_part_of_the_field_gives_that_part_of_the_whole(part):
    decoder = GHN(GHNConfig(), 35, 8, 64).decoder
    node, kind = torch.randn(3, 96), torch.eye(3)
    whole = decoder(node, kind, 64, 64)
    assert torch.allclose(decoder(node, kind, *part), whole[:, :, : part[0], : part[1]], atol=1e-6)


@pytest.mark.parametrize("decoder", ["spatial", "pointwise", "mlp"])
def test_every_decoder_writes_parts_of_one_field_with_as_many_parameters(decoder):
    torch.manual_seed(0)
    config = GHNConfig(decoder=decoder)
    ghn, z = GHN(config, 35, 8, 64), torch.randn(2, 8)
    networks = ghn([(Topology(35, hidden, 8), z) for hidden in ((64, 64), (24, 40))])
    for narrow in (2, 3):
        assert [w.shape for w, _ in networks.layers(narrow)] == [(24, 35), (40, 24), (8, 40)]
    assert 0.05 < networks.weights[1][:2].std() * 8 < 5
    assert 0.5e6 < sum(p.numel() for p in ghn.parameters()) < 1.2e6


def test_smooth_noise_correlates_neighbors_and_not_strangers():
    maps = smooth_noise(3, 32, 64, 3.0)
    assert abs(maps.std() - 1) < 0.05
    flat = maps - maps.mean((2, 3), keepdim=True)
    near = (flat[..., 1:] * flat[..., :-1]).mean() / flat.square().mean()
    far = (flat[..., 20:] * flat[..., :-20]).mean() / flat.square().mean()
    assert near > 0.7
    assert abs(far) < 0.2


def test_action_error_forgives_overshooting_the_clip_only():
    output = torch.tensor([3.0, -2.0, 0.5, 3.0, 2.0, 1.5])
    target = torch.tensor([1.0, -1.0, 0.0, -1.0, 0.5, 1 - 1.2e-7])
    expected = torch.tensor([0.0, 0.0, 0.25, 16.0, 2.25, 0.0])
    assert torch.equal(action_error(output, target), expected)


def test_networks_padded_to_the_whole_field_act_as_each_does_alone():
    ghn, topologies = GHN(CONFIG, 35, 8, 32), [Topology(35, hidden, 8) for hidden in HIDDEN]
    together = ghn.write(ghn.plan(topologies), torch.randn(len(HIDDEN), 4))
    obs = torch.randn(len(HIDDEN), 20, 35)
    outputs = together.forward(obs)
    assert {tuple(weight.shape[1:]) for weight in together.weights} == {(ghn.size, ghn.size)}
    assert together.depths.tolist() == [len(hidden) for hidden in HIDDEN]
    for i in range(len(HIDDEN)):
        alone = MLPBatch.from_layers([together.layers(i)]).forward(obs[i : i + 1])[0]
        assert torch.allclose(outputs[i], alone, atol=1e-6)


def test_a_field_decoded_whole_gives_the_same_networks():
    """What a GPU does, where one large operation beats several small ones."""
    ghn, z = GHN(CONFIG, 35, 8, 32), torch.randn(len(HIDDEN), 4)
    topologies = [Topology(35, hidden, 8) for hidden in HIDDEN]
    parted = ghn.write(ghn.plan(topologies), z)
    ghn._part = lambda out, fan_in: (ghn.size, ghn.size)
    plan = ghn.plan(topologies)
    assert len(plan.groups) == 1
    whole = ghn.write(plan, z)
    for one, other in zip(
        parted.weights + parted.biases, whole.weights + whole.biases, strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_noise_is_drawn_for_what_a_network_has_and_nothing_else(tmp_path):
    batch = distiller_of(tmp_path).sample_batch(0)
    assert torch.equal(batch.noise.shapes, batch.plan.shapes)
    drawn = []
    for layer, (weights, biases) in enumerate(
        zip(batch.noise.weights, batch.noise.biases, strict=True)
    ):
        out, fan_in = (size[:, None] for size in batch.plan.shapes[:, layer].unbind(-1))
        neurons = torch.arange(weights.shape[1]) < out
        has = neurons[..., None] & (torch.arange(weights.shape[2]) < fan_in)[:, None, :]
        assert torch.equal(weights != 0, has)
        assert torch.equal(biases != 0, neurons)
        drawn.append(weights[has])
    assert torch.cat(drawn).std() == pytest.approx(1, rel=0.1)


def test_varied_widths_are_those_nearby_and_none_is_too_wide():
    topology, rng = Topology(35, (8, 32), 8), torch.Generator().manual_seed(0)
    varied = [vary_widths(topology, 3, 33, rng) for _ in range(300)]
    assert {t.hidden[0] for t in varied} == set(range(5, 12))
    assert {t.hidden[1] for t in varied} == set(range(29, 34))
    assert vary_widths(topology, 0, 64, rng) == topology


def test_told_widths_move_the_weights_and_not_their_shapes():
    topology = Topology(35, (8, 32), 8)
    rng = torch.Generator().manual_seed(0)
    condition = [jitter_condition(topology, 8.0, 1.0, rng) for _ in range(200)]
    assert jitter_condition(topology, 0.0, 0.0, rng) == ConditioningShape.of(topology)
    assert {(t.dims[0], t.dims[-1]) for t in condition} == {(35, 8)}
    assert min(t.dims[1] for t in condition) == 4
    widths = [t.dims[2] for t in condition]
    assert 24 <= min(widths) < 26 < 38 < max(widths) <= 40
    depths = [t.depth for t in condition]
    assert 1 <= min(depths) < 1.2 < 2.8 < max(depths) <= 3
    assert condition[0].layer_positions == [0, condition[0].depth / 2, condition[0].depth]
    ghn, z = GHN(CONFIG, 35, 8, 32), torch.randn(2, 4)
    exact, moved = ghn([(topology, z)]), ghn([(topology, z)], [condition[0]])
    assert torch.equal(exact.shapes, moved.shapes)
    assert not torch.equal(exact.weights[1], moved.weights[1])


def test_latents_sample_their_teacher():
    latents = TeacherLatents(3, 4, initial_std=0.01)
    teacher_weights = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    z = latents.sample(teacher_weights, torch.randn(2, 4))
    expected = torch.stack([latents.mean[2], latents.mean[:2].mean(0)])
    assert torch.allclose(z, expected, atol=0.1)
    spread = torch.nn.init.normal_(latents.log_std)
    moved = latents.sample(teacher_weights, torch.ones(2, 4)) - latents.sample(
        teacher_weights, torch.zeros(2, 4)
    )
    assert torch.allclose(moved[0], spread[2].exp(), atol=1e-4)
    assert torch.allclose(moved[1], spread[:2].mean(0).exp(), atol=1e-4)
    assert latents.kl() > 0


def test_half_of_the_networks_are_mixes_of_the_best_teachers_and_the_others_stand_alone():
    best, rng = torch.tensor([True, False, True, True, False]), torch.Generator().manual_seed(0)
    teacher_weights = draw_teacher_weights(best, 2000, 0.5, 2, rng=rng)
    assert torch.allclose(teacher_weights.sum(1), torch.ones(2000))
    mixed = teacher_weights[:, best].any(1)
    assert abs(float(mixed.float().mean()) - 0.5) < 0.04
    assert torch.equal((teacher_weights > 0).sum(1), torch.where(mixed, 2, 1))
    assert torch.allclose(
        teacher_weights[mixed][:, best].mean(0), torch.full((3,), 1 / 3), atol=0.04
    )
    assert torch.allclose(
        teacher_weights[~mixed][:, ~best].mean(0), torch.full((2,), 1 / 2), atol=0.06
    )
    largest = teacher_weights[mixed].max(1).values  # of two shares that are any as likely as any
    assert abs(float(largest.mean()) - 0.75) < 0.02
    alone = draw_teacher_weights(torch.tensor([True, True]), 50, 0.5, 1, rng=rng)
    assert (alone.max(1).values == 1).all()
    few = draw_teacher_weights(torch.tensor([False, False]), 50, 0.5, 5, rng=rng)
    assert (few > 0).all()
    assert torch.equal(
        draw_teacher_weights(torch.tensor([True]), 2, 0.5, 3, rng=rng), torch.ones(2, 1)
    )


@pytest.mark.parametrize(
    ("costly", "clique"),
    [
        ([], [0, 1, 2, 3]),
        ([(0, 1), (0, 2), (0, 3)], [1, 2, 3]),
        ([(0, 2), (0, 3), (1, 2), (1, 3)], [0, 1]),  # two as large: the first
    ],
)
def test_the_largest_company_of_teachers_that_can_be_mixed_is_one_mode(costly, clique):
    pairs = itertools.combinations(range(4), 2)
    lost = {pair: 0.4 if pair in costly else 0.05 for pair in pairs}
    assert largest_behavior_mode(4, lost, 0.05) == clique


def test_one_teacher_is_a_mode():
    assert largest_behavior_mode(1, {}, 0.05) == [0]


def test_an_average_acts_as_two_do_on_average_and_is_known_by_their_weights():
    one, other, third = (random_policy((8,), seed) for seed in range(3))
    obs = np.random.default_rng(0).normal(size=35).astype(np.float32)
    both = average(one, other)
    assert np.allclose(both.begin(0)(obs), (one.act(obs) + other.act(obs)) / 2)
    assert both.fingerprint() == average(one, other).fingerprint()
    assert both.fingerprint() != average(one, third).fingerprint()


def test_lessons_are_the_teachers_states_by_share_and_their_actions_on_average(tmp_path):
    rng = np.random.default_rng(0)
    norm = ObservationNormalizer(
        rng.normal(size=35).astype(np.float32), np.full(35, 0.5, np.float32)
    )
    rows = [np.arange(count) + 16 * i for i, count in enumerate((3, 5, 9))]
    obs = [np.repeat(row[:, None], 35, 1).astype(np.float32) for row in rows]
    teachers = [random_policy((16, 8), i) for i in range(3)]
    distillation_data = DistillationData.of(norm, obs, teachers)
    distillation_data.save(tmp_path / "states.safetensors")
    distillation_data = DistillationData.load(tmp_path / "states.safetensors")
    teacher_weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]])
    assert [len(obs) for obs in distillation_data.thinned(100).obs] == [3, 5, 9]
    few = distillation_data.thinned(8)
    assert [obs[:, 0].tolist() for obs in few.obs] == [[0], [16, 20], [32, 34, 37, 40]]
    assert few.teachers is distillation_data.teachers
    states, actions = distillation_data.draw(teacher_weights, 400, torch.Generator().manual_seed(0))
    assert set(states[0, :, 0].tolist()) == {0, 1, 2}
    assert set(states[1, :, 0].tolist()) == {*range(3), *range(32, 41)}
    assert abs(float((states[1, :, 0] >= 32).float().mean()) - 0.75) < 0.08
    raw = states.numpy() * norm.std + norm.mean
    act = lambda i, row: np.clip(teachers[i].forward(raw[row]), -1, 1)  # noqa: E731
    assert np.allclose(actions[0].numpy(), act(0, 0), atol=1e-3)
    assert np.allclose(actions[1].numpy(), 0.25 * act(0, 1) + 0.75 * act(2, 1), atol=1e-3)


def test_the_gradient_of_mixed_teachers_reaches_every_latent_of_the_mix():
    latents = TeacherLatents(3, 4)
    latents.sample(torch.tensor([[0.5, 0.5, 0.0]]), torch.zeros(1, 4)).sum().backward()
    assert (latents.mean.grad != 0).any(1).tolist() == [True, True, False]


def test_networks_depend_on_their_own_generator_alone(sampler):
    one, two = (sampler.topology(hidden) for hidden in ((16, 8), (32, 16)))
    rng = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    beside = sampler.networks([two, one], torch.eye(3)[:2], [rng(1), rng(2)])
    alone = sampler.networks([one], sampler.single_teacher(1)[None], [rng(2)])
    for (w, b), (w2, b2) in zip(alone.layers(0), beside.layers(1), strict=True):
        assert torch.allclose(w, w2, atol=1e-6)
        assert torch.allclose(b, b2, atol=1e-6)


def test_direct_query_is_after_the_best_teachers_unless_others_are_named(sampler):
    best = changed_task(sampler, teachers=[Teacher(name, name == "b") for name in "abc"])
    assert [p.metadata["teacher_weights"] for p in best.policies((8,), 3, 0)] == ['{"b": 1.0}'] * 3
    assert (
        best.policies((8,), 1, 0, best.single_teacher(0))[0].metadata["teacher_weights"]
        == '{"a": 1.0}'
    )
    mixed = replace(sampler, max_teachers_per_mix=2).policies((8,), 2, 0)
    assert mixed[0].metadata["teacher_weights"] != mixed[1].metadata["teacher_weights"]
    (alone,) = replace(sampler, max_teachers_per_mix=2).policies((8,), 1, 0)
    assert np.allclose(alone.flat(), mixed[0].flat(), atol=1e-5)


def test_sampler_file_round_trip(sampler, tmp_path):
    path = sampler.save(tmp_path / "ghn.safetensors")
    back = HypernetModel.load(path)
    one, two = sampler.policies((16, 8), 3, 5), back.policies((16, 8), 3, 5)
    assert all(np.array_equal(a.flat(), b.flat()) for a, b in zip(one, two, strict=True))
    assert back.distribution == sampler.distribution
    assert back.max_teachers_per_mix == sampler.max_teachers_per_mix
    assert back.current.teachers == sampler.current.teachers
    assert torch.equal(back.current.success, sampler.current.success)


def test_model_file_of_another_format(tmp_path, sampler):
    from nnit_dist.nnit.model import NNiTModel

    with pytest.raises(NnitError, match="has format 'nnit.ghn/6'; expected 'nnit.model/5'"):
        NNiTModel.load(sampler.save(tmp_path / "ghn.safetensors"))
