import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.networks import changed_distribution

from nnit_dist.core.errors import NnitError
from nnit_dist.nnit.config import NNiTConfig, TransformerConfig
from nnit_dist.nnit.dataset import WINDOW, AlignedDataset, batch_of, draw_condition
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import trained_model
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.training.optimizer import average_gradients

CONFIG = NNiTConfig(
    transformer=TransformerConfig(width=32, depth=2, heads=2),
    steps=60,
    topologies_per_step=2,
    networks_per_topology=4,
    architectures=16,
    lr=3e-3,
    architecture_weight=0.5,
    condition_width_noise=0.0,
    condition_depth_noise=0.0,
    bf16=False,
)
CPU = torch.device("cpu")


def trainer_of(sampler, config=CONFIG, share=(0, 1), average=lambda parameters: None) -> Trainer:
    return Trainer(
        config, AlignedDataset(sampler, config, 0), CPU, 0, share=share, average_gradients=average
    )


@pytest.fixture(scope="module")
def trained(sampler):
    trainer = trainer_of(sampler)
    history = [trainer.step(step) for step in range(60)]
    return trained_model(trainer, trainer.dataset), history


@pytest.mark.parametrize("reuse", [1, 3])
def test_every_network_is_used_as_often_as_asked(reuse):
    used = Counter(batch_of(step, 5, reuse) for step in range(2 * reuse * WINDOW))
    assert used == {batch: reuse for batch in range(2 * WINDOW)}
    if reuse == 1:
        assert all(batch_of(step, 5, 1) == step for step in range(99))


def test_networks_that_are_used_again_meet_others():
    pairs = [(batch_of(step, 3, 4), batch_of(step, 8, 4)) for step in range(4 * WINDOW)]
    assert len(set(pairs)) == len(pairs)


def test_networks_are_the_same_whenever_training_goes_on(sampler):
    config = CONFIG.model_copy(update={"reuse": 2})
    through = AlignedDataset(sampler, config, 0)
    for step in range(WINDOW + 4):
        every = through.examples(step, range(10))
    anew = AlignedDataset(sampler, config, 0).examples(step, range(10))
    own = AlignedDataset(sampler, CONFIG, 0).examples(batch_of(step, 3, 2), range(10))[3]
    for one, other in zip(every, anew, strict=True):
        assert one.ids == other.ids
        assert (one.x is None) == (other.x is None)
        assert one.x is None or torch.equal(one.x, other.x)
    assert torch.equal(own.x, every[3].x)


def test_training_lowers_both_losses(trained):
    _, history = trained
    # Three equally likely architectures leave an entropy that no training removes.
    for name, bound in (("flow", 0.8), ("architecture", 0.95)):
        first = np.mean([row[name] for row in history[:10]])
        last = np.mean([row[name] for row in history[-10:]])
        assert last < bound * first, name


def test_told_widths_are_those_nearby_and_the_network_heeds_them(sampler):
    config = CONFIG.model_copy(update={"condition_width_noise": 12.0, "condition_depth_noise": 1.0})
    source = AlignedDataset(sampler, config, 0)
    topology, rng = sampler.topology((32, 16)), torch.Generator().manual_seed(0)
    condition = [draw_condition(topology, config, source.vocabulary, rng) for _ in range(200)]
    assert {t.dims[1] for t in condition} == set(range(20, 45))
    assert {t.dims[2] for t in condition} == set(range(8, 29))  # 4 to 28, but of 8 at least
    assert min(t.depth for t in condition) < 1.1 < 2.9 < max(t.depth for t in condition)
    examples = source.examples(0, range(8))
    assert len({tuple(example.ids) for example in examples}) > 2
    decoded = [source.vocabulary.decode(example.ids)[1] for example in examples]
    assert [tuple(e.condition.dims[1:-1]) for e in examples] == decoded


def test_networks_of_training_vary_in_width_and_are_as_large_as_their_layout(sampler):
    source = AlignedDataset(changed_distribution(sampler, variation=3), CONFIG, 0)
    widths = set()
    for example in source.examples(0, range(8)) + source.examples(1, range(8)):
        hidden = example.layout.topology.hidden
        same_depth = [seen for seen in sampler.distribution.seen if len(seen) == len(hidden)]
        moves = [np.abs(np.subtract(seen, hidden)).max() for seen in same_depth]
        assert min(moves) <= 3
        assert example.condition.dims[1:-1] == tuple(max(8, w) for w in hidden)
        assert torch.equal(example.x != 0, example.layout.mask != 0)
        widths |= set(hidden)
    assert max(widths) <= 32
    assert any(width % 8 for width in widths)


def test_half_of_the_examples_are_after_the_best_and_all_carry_their_success(sampler):
    source = AlignedDataset(replace(sampler, max_teachers_per_mix=2), CONFIG, 0)
    drawn = [one for step in range(40) for one in source.drawn(step, range(8))]
    mixed = [one for one in drawn if one.teacher_weights[sampler.current.best].any()]
    assert 0.4 < len(mixed) / len(drawn) < 0.6
    assert all((one.teacher_weights > 0).tolist() == [True, True, False] for one in mixed)
    examples = source.examples(0, range(24))
    assert {round(example.success, 4) for example in examples} == {0.9, 0.4}
    assert source.best_success == pytest.approx([0.9])


def test_a_resumed_run_takes_the_steps_of_an_unbroken_one(sampler):
    unbroken = trainer_of(sampler)
    curve = [unbroken.step(step) for step in range(4)]
    first = trainer_of(sampler)
    for step in range(2):
        first.step(step)
    state = {name: copy.deepcopy(part.state_dict()) for name, part in first.state().items()}
    torch.manual_seed(999)
    second = trainer_of(sampler)
    for name, part in second.state().items():
        part.load_state_dict(state[name])
    assert [second.step(step) for step in range(2, 4)] == curve[2:]
    for a, b in zip(unbroken.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(unbroken.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("parts", [2, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(sampler, parts):
    whole, split = (
        trainer_of(sampler),
        trainer_of(sampler, CONFIG.model_copy(update={"accumulate": parts})),
    )
    for step in range(3):
        one, other = whole.step(step), split.step(step)
        assert one == pytest.approx(other, rel=1e-4)


def _worker(rank: int, store: str, out: str, sampler) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer = trainer_of(sampler, share=(rank, 2), average=average_gradients)
    torch.save([trainer.step(step) for step in range(5)], f"{out}-{rank}")
    dist.destroy_process_group()


def test_two_workers_give_the_curve_of_one(sampler, tmp_path):
    """The batch is shared, not doubled: the same losses, but for the order of sums."""
    mp.spawn(_worker, (str(tmp_path / "store"), str(tmp_path / "curve"), sampler), nprocs=2)
    alone = trainer_of(sampler)
    curve = [alone.step(step) for step in range(5)]
    for rank in range(2):
        shared = torch.load(tmp_path / f"curve-{rank}", weights_only=True)
        for one, other in zip(curve, shared, strict=True):
            assert one == pytest.approx(other, rel=1e-3)


def test_samples_do_not_depend_on_the_batch(trained):
    model = trained[0]
    together = model.generate((24, 16), 4, seed=3, steps=4)
    alone = model.generate((24, 16), 1, seed=3, steps=4, first=2)[0]
    assert np.array_equal(together[2].flat(), alone.flat())
    assert together[2].id == alone.id


def test_samples_differ_by_seed_and_number_and_repeat(trained):
    model = trained[0]
    a, b = model.generate((16,), 2, seed=0, steps=2)
    again = model.generate((16,), 1, seed=0, steps=2)[0]
    other = model.generate((16,), 1, seed=1, steps=2)[0]
    assert np.array_equal(a.flat(), again.flat())
    assert not np.array_equal(a.flat(), b.flat())
    assert not np.array_equal(a.flat(), other.flat())


def test_success_and_guidance_change_what_is_written(trained):
    model = trained[0]
    default, best, worse, guided = (
        model.generate((16, 8), 1, steps=2, **asked)[0].flat()
        for asked in ({}, {"success": 0.9}, {"success": 0.4}, {"guidance": 1.0})
    )
    assert model.best_success == pytest.approx(0.9)
    assert np.allclose(default, best, atol=1e-6)
    assert not np.array_equal(best, worse)
    assert not np.array_equal(default, guided)


def test_unseen_topologies_are_written_and_wrong_ones_refused(trained):
    model = trained[0]
    for hidden in ((23, 9), (64,), (8, 8, 8, 8)):  # new widths, twice the width, two layers more
        assert model.generate(hidden, 1, steps=1)[0].topology.hidden == hidden
    with pytest.raises(NnitError, match="writes from 8 units up"):
        model.generate((7,), 1)
    with pytest.raises(NnitError, match="not for PickCube-v1"):
        model.for_task("PickCube-v1")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"success": 1.5}, "between 0 and 1; got 1.5"),
        ({"guidance": -1.0}, "at least 0"),
        ({"guidance": 2.0}, "trained with nnit.condition_dropout=0, so it cannot be guided"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(trained, asked, expected):
    unguided = replace(trained[0], guidable=False)
    with pytest.raises(NnitError, match=expected):
        unguided.generate((8,), 1, **asked)


def test_file_round_trip(trained, tmp_path):
    model = trained[0]
    back = NNiTModel.load(model.save(tmp_path / "nnit.safetensors"))
    one, two = (m.generate((16, 8), 1, seed=1, steps=3)[0] for m in (model, back))
    assert np.array_equal(one.flat(), two.flat())
    assert (back.best_success, back.guidable) == (model.best_success, model.guidable)


def test_drawn_architectures_are_valid_and_repeat_by_seed(trained):
    model = trained[0]
    drawn = model.draw_architectures(50, seed=1, success=0.9)
    assert drawn == model.draw_architectures(50, seed=1, success=0.9)
    assert len(drawn) > 25  # it is trained for 60 steps only
    assert all(len(hidden) <= 2 and max(hidden) <= 32 for hidden in drawn)
