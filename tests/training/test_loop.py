import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import ValidationError
from support.networks import distiller_of

from nnit_dist.core.errors import NnitError
from nnit_dist.core.rng import generator_of
from nnit_dist.stages.config import load_config
from nnit_dist.stages.pipeline import Pipeline
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import batches_ahead, defaults_of_environment
from nnit_dist.training.optimizer import average_gradients
from nnit_dist.training.process_group import interface_of
from nnit_dist.training.state import read_metrics

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


def _worker(rank: int, world: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    (used * (rank + 1)).sum().backward()
    average_gradients([used, unused])
    torch.save([used.grad, unused.grad], f"{out}-{rank}")
    dist.destroy_process_group()


def test_gradients_are_averaged_over_workers_and_missing_ones_count_as_zero(tmp_path):
    out = str(tmp_path / "grad")
    mp.spawn(_worker, args=(2, str(tmp_path / "store"), out), nprocs=2)
    for rank in range(2):
        used, unused = torch.load(f"{out}-{rank}", weights_only=True)
        assert torch.equal(used, torch.full((3,), 1.5))
        assert torch.equal(unused, torch.zeros(2))


def test_one_worker_keeps_its_gradients():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.sum().backward()
    average_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(3))


def test_randomness_depends_on_its_key():
    draw = lambda *key: torch.rand(4, generator=generator_of(*key)).tolist()  # noqa: E731
    assert draw(0, 5, 1) == draw(0, 5, 1)
    assert len({tuple(draw(*key)) for key in [(0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 0)]}) == 4


@pytest.mark.parametrize("loaders", [1, 2])
def test_the_hypernetworks_batches_are_the_same_from_loaders(loaders, tmp_path):
    distiller = distiller_of(tmp_path)
    for step, batch in enumerate(batches_ahead(distiller.sample_batch, range(4), loaders)):
        known = distiller.sample_batch(step)
        for name in ("mixes", "latent_noise", "states"):
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


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_training_goes_on_with_fewer_workers_where_a_node_dies():
    found = changing_nodes("training")
    assert found["workers"][0] == 2
    assert found["workers"][-1] == 1
    assert found["steps"] == list(range(1, found["total"] + 1))
    assert found["sums"] == pytest.approx([sum(range(step)) for step in found["steps"]])


@pytest.mark.fault
@pytest.mark.long  # 3 minutes: Ray Train looks for nodes once a minute
@pytest.mark.timeout(300)
def test_training_grows_where_a_node_comes():
    found = changing_nodes("growing")
    assert (found["workers"][0], found["workers"][-1]) == (1, 2)
    assert found["steps"] == list(range(1, found["total"] + 1))
    assert found["sums"] == pytest.approx([sum(range(step)) for step in found["steps"]])


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_alignment_goes_on_with_fewer_workers_where_a_node_dies():
    found = changing_nodes("alignment")
    made = {"ghn.safetensors", "lessons-PushCube-v1.safetensors", "round-0.pt", "round-1.pt"}
    assert made < set(found["files"])
    assert found["steps"] == [20, 25, 40]  # two rounds, and every 25
    assert found["figures"]["steps"] == 40


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1").startswith("lo")
    assert interface_of("203.0.113.9") is None


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_population_is_complete_where_a_node_dies():
    found = changing_nodes("population")
    assert len(found["trials"]) == 3
    assert found["snapshots"] == [
        [trial, steps] for trial in found["trials"] for steps in (2048, 4096)
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


def test_metrics_survive_a_half_written_line_and_repeated_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.5}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    assert [row["loss"] for row in read_metrics(path)] == pytest.approx([3.0, 2.5])
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_curves_go_to_wandb_offline_and_only_when_asked(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 1, "flow": 3.25}\n')
    Pipeline(load_config(SMOKE), tmp_path)._log("train", {"steps": 1})
    assert not (tmp_path / "wandb").exists()
    Pipeline(load_config(SMOKE, ["logging.wandb=offline"]), tmp_path)._log("train", {"steps": 1})
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes it
    while b"train/flow" not in record.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
