import copy

import numpy as np
import pytest
import torch

from nnit_dist.errors import NnitError
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.tokens import token_layout
from nnit_dist.nnit.train import NNiTConfig, NNiTTrainer
from nnit_dist.nnit.transformer import TransformerConfig

CONFIG = NNiTConfig(
    transformer=TransformerConfig(width=32, depth=2, heads=2),
    steps=60,
    topologies=2,
    networks=4,
    lr=3e-3,
    architecture_weight=0.5,
    width_jitter=0.0,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(sampler):
    trainer = NNiTTrainer(CONFIG, sampler, CPU, seed=0)
    history = [trainer.step(step, 0) for step in range(60)]
    return trainer, history


def test_training_lowers_both_losses(trained):
    _, history = trained
    # Three equally likely architectures leave an entropy that no training removes.
    for name, bound in (("flow", 0.8), ("architecture", 0.95)):
        first = np.mean([row[name] for row in history[:10]])
        last = np.mean([row[name] for row in history[-10:]])
        assert last < bound * first, name


def test_told_widths_are_those_nearby_and_the_network_heeds_them(sampler):
    trainer = NNiTTrainer(CONFIG.model_copy(update={"width_jitter": 12.0}), sampler, CPU, seed=0)
    topology, rng = sampler.topology((32, 16)), torch.Generator().manual_seed(0)
    told = [trainer._told(topology, rng) for _ in range(100)]
    assert {t.hidden[0] for t in told} == {24, 32}  # 40 is beyond the vocabulary
    assert {t.hidden[1] for t in told} == {8, 16, 24}
    assert all(np.isfinite(trainer.step(step, 0)["flow"]) for step in range(30))
    layout = token_layout(topology, 8)
    ids = torch.tensor([trainer.vocabulary.encode(sampler.task.name, (32, 16))])
    x, time = torch.randn(1, *layout.mask.shape), torch.zeros(1)
    own, other = (trainer.network(ids, time, x, layout, t)[0] for t in (None, told[0]))
    assert told[0] != topology
    assert not torch.equal(own, other)


def test_a_resumed_run_takes_the_steps_of_an_unbroken_one(sampler):
    unbroken = NNiTTrainer(CONFIG, sampler, CPU, seed=0)
    for step in range(4):
        unbroken.step(step, 0)
    first = NNiTTrainer(CONFIG, sampler, CPU, seed=0)
    for step in range(2):
        first.step(step, 0)
    state = {name: copy.deepcopy(part.state_dict()) for name, part in first.state().items()}
    torch.manual_seed(999)
    second = NNiTTrainer(CONFIG, sampler, CPU, seed=0)
    for name, part in second.state().items():
        part.load_state_dict(state[name])
    for step in range(2, 4):
        second.step(step, 0)
    for a, b in zip(unbroken.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(unbroken.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_samples_do_not_depend_on_the_batch(trained):
    model = trained[0].model()
    together = model.generate((24, 16), 4, seed=3, steps=4)
    alone = model.generate((24, 16), 1, seed=3, steps=4, first=2)[0]
    assert np.array_equal(together[2].flat(), alone.flat())
    assert together[2].id == alone.id


def test_samples_differ_by_seed_and_number_and_repeat(trained):
    model = trained[0].model()
    a, b = model.generate((16,), 2, seed=0, steps=2)
    again = model.generate((16,), 1, seed=0, steps=2)[0]
    other = model.generate((16,), 1, seed=1, steps=2)[0]
    assert np.array_equal(a.flat(), again.flat())
    assert not np.array_equal(a.flat(), b.flat())
    assert not np.array_equal(a.flat(), other.flat())


def test_unseen_widths_are_written_and_wrong_ones_refused(trained):
    model = trained[0].model()
    assert model.generate((24, 8), 1, steps=1)[0].topology.hidden == (24, 8)
    with pytest.raises(NnitError, match="Nearest: 8, 16"):
        model.generate((12,), 1)
    with pytest.raises(NnitError, match="not for PickCube-v1"):
        model.check((8,), "PickCube-v1")


def test_file_round_trip(trained, tmp_path):
    model = trained[0].model()
    back = NNiTModel.load(model.save(tmp_path / "nnit.safetensors"))
    one, two = (m.generate((16, 8), 1, seed=1, steps=3)[0] for m in (model, back))
    assert np.array_equal(one.flat(), two.flat())


def test_architecture_is_predicted_from_what_is_left(trained, sampler):
    """With all but the depth hidden, the model still knows the task."""
    model = trained[0].model()
    ids = torch.tensor([model.vocabulary.encode(sampler.task.name, (16, 8))])
    ids[0, 0] = model.vocabulary.mask
    logits = model.network(ids, torch.zeros(1), None, None)[1][0, 0]
    logits = logits.masked_fill(~model.vocabulary.allowed()[0], -torch.inf)
    assert model.vocabulary.tasks[int(logits.argmax()) - model.vocabulary._task] == "PushCube-v1"
