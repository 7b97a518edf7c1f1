"""Packing: sequences share a row of tokens and know nothing of each other."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import Topology
from nnit_dist.nnit import transformer
from nnit_dist.nnit.config import TransformerConfig
from nnit_dist.nnit.packing import Packed, pack, place_features
from nnit_dist.nnit.tokens import ArchitectureVocabulary, token_layout
from nnit_dist.nnit.trainer import Example, corrupt
from nnit_dist.nnit.transformer import NNiT

VOCABULARY = ArchitectureVocabulary(["t"], 4, 32, 3)
hiddens = st.lists(st.sampled_from(range(4, 65, 4)), min_size=1, max_size=5).map(tuple)
batches = st.lists(st.tuples(hiddens, st.booleans()), min_size=1, max_size=6)


def sequences(batch):
    ids = [VOCABULARY.encode("t", hidden) for hidden, _ in batch]
    layouts = [token_layout(Topology(6, h, 3), 4) if whole else None for h, whole in batch]
    return ids, layouts, [None] * len(batch)


@settings(max_examples=40, deadline=None)
@given(batch=batches)
def test_every_token_has_a_place_of_its_own_and_none_is_padding(batch):
    ids, layouts, condition = sequences(batch)
    packed = pack(ids, layouts, condition, 32)
    total = sum(map(len, ids)) + sum(layout.length for layout in layouts if layout)
    layer_positions = torch.cat([packed.architecture_A, packed.patches_M]).sort().values
    assert torch.equal(layer_positions, torch.arange(total))
    assert sum(count * length for count, length in packed.runs) == total
    assert packed.sequences == len(batch)
    lengths = [length for count, length in packed.runs for _ in range(count)]
    assert torch.bincount(packed.owner_T, minlength=len(batch)).tolist() == lengths
    assert torch.equal(packed.ids_A, torch.tensor([token for row in ids for token in row]))


def lively(config=TransformerConfig(32, 2, 2)):
    """A network whose outputs are not zero, as they are at the start of training."""
    torch.manual_seed(0)
    network = NNiT(config, VOCABULARY, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def random_inputs(packed: Packed):
    generator, count = torch.Generator().manual_seed(1), packed.sequences
    x = torch.randn(len(packed.kind_M), 16, generator=generator)
    success = torch.rand(count, generator=generator)
    success[::2] = torch.nan
    return (
        x,
        torch.rand(count, generator=generator),
        torch.rand(count, generator=generator),
        success,
    )


@settings(max_examples=15, deadline=None)
@given(batch=batches)
def test_a_sequence_does_not_depend_on_what_is_packed_beside_it(batch):
    ids, layouts, condition = sequences(batch)
    packed, network = pack(ids, layouts, condition, 32), lively()
    x, time, rate, success = random_inputs(packed)
    patches, logits = network(packed, x, time, rate, success)
    for i in range(len(batch)):
        own = packed.owner_M == i
        alone = network(
            pack([ids[i]], [layouts[i]], [None], 32),
            x[own],
            *(level[i : i + 1] for level in (time, rate, success)),
        )
        assert torch.allclose(patches[own], alone[0], atol=1e-5)
        assert torch.allclose(logits[packed.owner_A == i], alone[1], atol=1e-5)


def test_the_loss_and_its_gradient_are_those_of_the_padded_computation(sampler, monkeypatch):
    from nnit_dist.nnit.config import NNiTConfig
    from nnit_dist.nnit.dataset import AlignedDataset
    from nnit_dist.nnit.trainer import Trainer

    config = NNiTConfig(transformer=TransformerConfig(32, 2, 2), bf16=False)
    trainer = Trainer(config, AlignedDataset(sampler, config, 0), torch.device("cpu"), 0)
    for step in range(5):
        trainer.step(step)
    batch = trainer.corrupted(5, range(64))
    parameters = list(trainer.network.parameters())

    def losses_and_gradients():
        losses = torch.stack(trainer.losses(batch))
        gradients = torch.autograd.grad(losses.sum(), parameters)
        return losses, torch.cat([gradient.flatten() for gradient in gradients])

    by_runs = losses_and_gradients()
    monkeypatch.setattr(
        transformer,
        "attention",
        lambda q, k, v, runs: transformer.attention_table(q, k, v, batch.packed),
    )
    in_a_table = losses_and_gradients()
    assert len(batch.packed.runs) > len(batch.packed.tables) > 1
    for one, other in zip(by_runs, in_a_table, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_padding_within_a_patch_never_leaks():
    """Of a patch at the edge, only the weights count: 6 inputs are one and a half patches of 4."""
    hidden = (8, 4)
    layout, rng = token_layout(Topology(6, hidden, 3), 4), torch.Generator().manual_seed(0)
    x = torch.randn(layout.mask.shape, generator=rng)
    soiled = x + 100 * (1 - layout.mask)
    batches = []
    for values in (x, soiled):
        example = Example(VOCABULARY.encode("t", hidden), 0.5, layout, None, values)
        batches.append(
            corrupt([example], [stream("test")], VOCABULARY, mask_rate=0, condition_dropout=0)
        )
    assert torch.equal(batches[0].x_t, batches[1].x_t)
    assert layout.mask.mean() < 1


def test_places_are_those_that_are_told():
    layout = token_layout(Topology(6, (8, 16), 3), 4)
    truth = place_features(layout, ConditioningShape.of(layout.topology), 32)
    other = place_features(layout, ConditioningShape((6, 12, 16, 3), 2.5), 32)
    assert truth.shape == other.shape == (layout.length, transformer.PLACE_FEATURES)
    assert not torch.equal(truth, other)
    assert torch.equal(truth, place_features(layout, ConditioningShape((6, 8, 16, 3), 2), 32))


@pytest.mark.parametrize("config", [(30, 2, 4), (0, 1, 1), (8, 1, 0)])
def test_impossible_sizes_are_refused(config):
    with pytest.raises(ValueError, match="heads divide width"):
        TransformerConfig(*config)


def test_network_and_training_step_need_torch_alone():
    """So that they can be measured on a bare machine."""
    code = """
import sys
banned = ("ray", "mani_skill", "sapien", "pydantic", "einops", "safetensors", "gymnasium", "rich")
import nnit_dist.nnit.trainer
found = sorted({name.split(".")[0] for name in sys.modules} & set(banned))
assert not found, found
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
