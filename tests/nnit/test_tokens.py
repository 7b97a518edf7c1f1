import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.topology import Topology
from nnit_dist.nnit.normalizer import TokenNormalizer
from nnit_dist.nnit.tokens import (
    BIAS,
    KINDS,
    LAYOUT_CACHE_BYTES,
    ArchitectureVocabulary,
    detokenize,
    token_layout,
    tokenize,
)

topologies = st.builds(
    Topology,
    st.integers(1, 40),
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    st.integers(1, 12),
)


def random_networks(topology, batch=2, seed=0) -> MLPBatch:
    return MLPBatch.randn(topology, batch, torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(topology=topologies, patch=st.sampled_from([2, 4, 8]))
def test_every_topology_round_trips(topology, patch):
    networks = random_networks(topology)
    layout = token_layout(topology, patch)
    values = tokenize(networks, layout)
    assert values.shape == (2, layout.length, patch * patch)
    back = detokenize(values, layout)
    assert [back.topology(i) for i in range(2)] == [topology] * 2
    for weight, weight2 in zip(networks.weights, back.weights, strict=True):
        assert torch.allclose(weight, weight2, atol=1e-6)
    for bias, bias2 in zip(networks.biases, back.biases, strict=True):
        assert torch.equal(bias, bias2)
    wider = MLPBatch.cat([networks, random_networks(Topology(50, (50,) * 5, 50))])
    assert torch.equal(tokenize(wider.select([0, 1]), layout), values)


@settings(max_examples=40, deadline=None)
@given(topology=topologies)
def test_mask_counts_every_parameter_once_and_padding_never_leaks(topology):
    layout = token_layout(topology, 8)
    assert layout.mask.sum() == topology.num_params
    values = tokenize(random_networks(topology), layout)
    assert torch.equal(values * layout.mask, values)
    soiled = values + (1 - layout.mask) * 1e3
    clean, dirty = detokenize(values, layout), detokenize(soiled, layout)
    assert all(
        torch.equal(a, b)
        for x, y in ((clean.weights, dirty.weights), (clean.biases, dirty.biases))
        for a, b in zip(x, y, strict=True)
    )


def test_permuting_neurons_permutes_rows_and_columns():
    """Swapping two blocks of neurons moves whole tokens, and no values within them."""
    topology, layout = Topology(8, (16, 8), 8), token_layout(Topology(8, (16, 8), 8), 8)
    networks = random_networks(topology)
    (w0, w1, w2), (b0, b1, b2) = networks.weights, networks.biases
    order = torch.cat([torch.arange(8, 16), torch.arange(8)])
    weights, biases = [w0[:, order], w1[:, :, order], w2], [b0[:, order], b1, b2]
    swapped = MLPBatch.of_topology(topology, weights, biases)
    values, moved = tokenize(networks, layout), tokenize(swapped, layout)
    where = lambda layer, bias: [  # noqa: E731
        i
        for i in range(layout.length)
        if layout.layer[i] == layer and (layout.kind[i] == BIAS) == bias
    ]
    for part in (where(0, False), where(0, True), where(1, False)):
        assert torch.equal(values[:, part[0]], moved[:, part[1]])
        assert torch.equal(values[:, part[1]], moved[:, part[0]])


def test_layouts_are_kept_within_a_bound_of_bytes():
    token_layout.cache.clear()
    layout = token_layout(Topology(35, (64, 64), 8), 8)
    assert token_layout(Topology(35, (64, 64), 8), 8) is layout
    assert token_layout.cache.currsize == layout.nbytes > layout.mask.nbytes
    assert token_layout.cache.maxsize == LAYOUT_CACHE_BYTES


def test_tokens_of_one_kind_stand_together():
    layout = token_layout(Topology(35, (16, 24, 8), 8), 8)
    assert torch.equal(layout.kind, layout.kind.sort().values)
    assert torch.equal(layout.kind.unique(), torch.arange(KINDS))


def test_whitening_inverts_and_ignores_padding():
    layout = token_layout(Topology(35, (16, 12), 7), 8)
    values = tokenize(random_networks(layout.topology, 16), layout) * 3 + layout.mask
    normalizer = TokenNormalizer.fit([(values, layout)])
    white = normalizer.normalize(values, layout)
    assert torch.allclose(normalizer.denormalize(white, layout) * layout.mask, values, atol=1e-5)
    inside = white[:, layout.mask > 0]
    assert abs(inside.mean()) < 0.02
    assert abs(inside.std() - 1) < 0.02


VOCABULARY = ArchitectureVocabulary(["PushCube-v1"], 8, 64, 3)
hiddens = st.lists(st.integers(8, 128), min_size=1, max_size=5).map(tuple)


@given(hidden=hiddens)
def test_architectures_round_trip(hidden):
    ids = VOCABULARY.encode("PushCube-v1", hidden)
    assert len(ids) == 2 + len(hidden)
    assert VOCABULARY.decode(ids) == ("PushCube-v1", hidden)
    assert all(VOCABULARY.allowed()[slot, token] for slot, token in enumerate(ids))


@given(hidden=hiddens)
def test_what_is_drawn_is_within_the_range_of_training(hidden):
    ids = VOCABULARY.filled(VOCABULARY.encode("PushCube-v1", hidden))
    drawable = VOCABULARY.drawable()
    allowed = [bool(row[token]) for row, token in zip(drawable, ids, strict=False)]
    assert all(allowed) == (len(hidden) <= 3 and max(hidden[:3]) <= 64)
    if all(allowed):
        assert VOCABULARY.decode(ids) == ("PushCube-v1", hidden)


def test_invalid_token_sequences_are_no_architecture():
    task, depth, first, *rest = VOCABULARY.filled(VOCABULARY.encode("PushCube-v1", (16, 24)))
    assert VOCABULARY.decode([task, depth, VOCABULARY.none, *rest]) is None
    assert VOCABULARY.decode([task, VOCABULARY.mask, first, *rest]) is None
    assert VOCABULARY.decode([task, depth, first]) is None


def test_ids_beyond_training_differ_from_those_of_training_by_their_number_alone():
    inside, beyond = (VOCABULARY.encode("PushCube-v1", hidden) for hidden in ((64,), (128,)))
    types, numbers = VOCABULARY.types(), VOCABULARY.numbers()
    assert types[inside[2]] == types[beyond[2]]
    assert numbers[beyond[2]] == 2 * numbers[inside[2]] == 2
    assert types.max() + 1 == VOCABULARY.types_count


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ((20, 4), "width 4 is too little: this model writes from 8 units up"),
        ((136,), "width 136 is too much: .* trained for up to 64, and writes up to 128"),
        ((8,) * 6, "6 hidden layers are too many: .* up to 3, and writes up to 5"),
    ],
)
def test_architectures_out_of_range(hidden, expected):
    with pytest.raises(NnitError, match=expected):
        VOCABULARY.encode("PushCube-v1", hidden)
