import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from support.networks import distiller_of

from nnit_dist.core.errors import NnitError
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import batches_ahead, defaults_of_environment


@pytest.mark.parametrize("loaders", [1, 2])
def test_the_hypernetworks_batches_are_the_same_from_loaders(loaders, tmp_path):
    distiller = distiller_of(tmp_path)
    for step, batch in enumerate(batches_ahead(distiller.sample_batch, range(4), loaders)):
        known = distiller.sample_batch(step)
        for name in ("teacher_weights", "latent_noise", "states"):
            assert torch.equal(getattr(batch, name), getattr(known, name))
        assert torch.equal(batch.plan.features, known.plan.features)


@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_batches_come_in_order_whoever_prepares_them(loaders, sampler):
    from nnit_dist.nnit.config import NNiTConfig
    from nnit_dist.nnit.dataset import AlignedDataset
    from nnit_dist.nnit.trainer import Trainer

    config = NNiTConfig(
        topologies_per_step=2, networks_per_topology=2, architectures=3, accumulate=2
    )
    trainer = Trainer(config, AlignedDataset(sampler, config, 0), torch.device("cpu"), 0)
    steps = range(5, 12)
    for step, batch in zip(steps, batches_ahead(trainer.sample_batch, steps, loaders), strict=True):
        for one, other in zip(batch, trainer.sample_batch(step), strict=True):
            assert torch.allclose(one.x_t, other.x_t, atol=1e-5)  # sums by one thread, or two
            assert torch.equal(one.packed.ids_A, other.packed.ids_A)


def test_what_fails_in_a_loader_fails_the_training():
    batches = batches_ahead(lambda step: 1 // (step - 2), range(4), 2)
    assert [next(batches), next(batches)] == [-1, -1]
    with pytest.raises(ZeroDivisionError, match="by zero"):
        next(batches)


def changing_nodes(stage: str) -> dict:
    """What the script says of a stage in whose middle a node of its cluster died, or came."""
    command = [sys.executable, Path(__file__).parents[1] / "support" / "changing_nodes.py", stage]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["changed"]
    assert found["alive"] == (3 if stage == "growing" else 2)  # the head is one
    return found


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_training_goes_on_with_fewer_workers_where_a_node_dies():
    found = changing_nodes("training")
    assert found["workers"][0] == 2
    assert found["workers"][-1] == 1
    assert found["steps"] == list(range(1, found["total"] + 1))
    assert found["sums"] == pytest.approx([sum(range(step)) for step in found["steps"]])


@pytest.mark.fault
@pytest.mark.endurance  # 3 minutes: Ray Train looks for nodes once a minute
@pytest.mark.timeout(300)
def test_training_grows_where_a_node_comes():
    found = changing_nodes("growing")
    assert (found["workers"][0], found["workers"][-1]) == (1, 2)
    assert found["steps"] == list(range(1, found["total"] + 1))
    assert found["sums"] == pytest.approx([sum(range(step)) for step in found["steps"]])


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_alignment_goes_on_with_fewer_workers_where_a_node_dies():
    found = changing_nodes("alignment")
    made = {"ghn.safetensors", "distillation-PushCube-v1.safetensors", "round-0.pt", "round-1.pt"}
    assert made < set(found["files"])
    assert found["steps"] == [20, 25, 40]  # two rounds, and every 25
    assert found["figures"]["steps"] == 40


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_population_is_complete_where_a_node_dies():
    found = changing_nodes("population")
    assert len(found["trials"]) == 3
    assert found["snapshots"] == [
        [trial, steps] for trial in found["trials"] for steps in (512, 1024)
    ]


def test_what_one_training_sets_is_not_left_to_the_next(monkeypatch):
    monkeypatch.setenv("NNIT_TEST_USERS", "theirs")
    monkeypatch.delenv("NNIT_TEST_OURS", raising=False)
    for value in ("300", "20"):  # seconds for which workers are awaited: not those of the first
        settings = {"NNIT_TEST_USERS": value, "NNIT_TEST_OURS": value}
        with pytest.raises(NnitError), defaults_of_environment(settings):
            assert os.environ["NNIT_TEST_OURS"] == value
            assert os.environ["NNIT_TEST_USERS"] == "theirs"
            raise NnitError("the training failed")
        assert "NNIT_TEST_OURS" not in os.environ
    assert os.environ["NNIT_TEST_USERS"] == "theirs"


def test_fewer_workers_than_none_are_refused():
    with pytest.raises(ValidationError, match="min_workers=3 are more than workers=2"):
        Placement(workers=2, min_workers=3)
