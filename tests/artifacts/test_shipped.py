"""The shipped model is what its manifests say, and reached what the README says."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash
from nnit_dist.core.splits import UNSEEN_KINDS, WITHIN
from nnit_dist.core.task import DEFAULT_CONTROL_MODE
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import load_model
from nnit_dist.transfer.refine import load_distillation_data, refine

RUN, TABLETOP = shipped("PushCube-v1"), shipped("PickCube-v1")


@pytest.mark.parametrize("run", [RUN, TABLETOP], ids=lambda run: run.path.name)
@pytest.mark.parametrize(
    ("stage", "name", "artifact"),
    [
        ("align", "zoo", "population/zoo"),
        ("train", "ghn", "align/ghn.safetensors"),
        ("evaluate", "ghn", "align/ghn.safetensors"),
        ("evaluate", "zoo", "population/zoo"),
    ],
)
def test_every_artifact_is_the_one_that_the_next_stage_read(run, stage, name, artifact):
    manifest = run.manifest(stage)
    assert manifest["key"]["inputs"][name] == content_hash(run.path / artifact)


def test_unseen_topologies_reach_the_bar():
    """All samples of all unseen topologies, 100 episodes each, beside teachers."""
    summaries = RUN.summaries()["PushCube-v1"]["summaries"]
    found = {(row["method"], row["kind"]): row for row in summaries}
    unseen, teachers = found["NNiT", "all unseen"], found["teachers", "teacher"]
    for kind in UNSEEN_KINDS:
        row = found["NNiT", kind]
        assert row["topologies"] == len(RUN.split().unseen[kind]) >= 22
        assert row["episodes"] == 100 * row["networks"] == 200 * row["topologies"]
    assert unseen["success_once"] >= 0.95 * teachers["success_once"]


@pytest.mark.parametrize(
    ("task", "absolute", "of_teachers"),
    [
        ("PushCube-v1", 0.9, 0.95),
        ("PullCube-v1", 0.9, 0.95),
        ("PickCube-v1", 0.85, 0.95),
        ("LiftPegUpright-v1", 0.9, 0.945),
    ],
)
def test_a_model_of_four_tasks_reaches_what_is_told_of_it(task, absolute, of_teachers):
    summaries = TABLETOP.summaries()[task]["summaries"]
    found = {(row["method"], row["kind"]): row for row in summaries}
    teachers = found["teachers", "teacher"]["success_once"]
    both = [found["NNiT", kind] for kind in ("combination", "width")]
    for row in both:
        assert row["episodes"] == 100 * row["networks"] == 200 * row["topologies"] >= 3200
        assert row["success_once"] >= absolute
        assert row["success_once"] >= of_teachers * teachers
    mean = sum(row["success_once"] * row["episodes"] for row in both)
    mean /= sum(row["episodes"] for row in both)
    assert mean >= 0.95 * teachers


@pytest.mark.parametrize("task", ["PushCube-v1", "PullCube-v1", "LiftPegUpright-v1", "PickCube-v1"])
def test_teachers_ship_that_refine_what_is_written(task):
    """The best that do the task in one way, as the population has them."""
    run = shipped(task)
    distillation_data = load_distillation_data(run, task, DEFAULT_CONTROL_MODE)
    sampler = HypernetModel.load(run.hypernet(), task)
    zoo = {m.policy.id: m.policy for m in run.zoo().members()}
    best = [zoo[sampler.current.teachers[i].id] for i in sampler.current.best]
    kept = distillation_data.teachers.to_policies(
        task=sampler.task,
        source="kept",
        ids=[policy.id for policy in best],
        normalizer=distillation_data.norm,
    )
    assert len(distillation_data.teachers) == len(best)
    for policy, teacher in zip(best, kept, strict=True):
        for (weight, bias), (own, own_bias) in zip(teacher.layers, policy.layers, strict=True):
            assert np.allclose(weight, own, atol=1e-4)
            assert np.allclose(bias, own_bias, atol=1e-3)
    _, errors = refine(load_model(task).generate((40, 40), 1), distillation_data, steps=100)
    assert errors[0][1] < errors[0][0]


def test_a_task_that_was_learnt_before_loses_little():
    """PushCube-v1 in the model of four tasks, on the same topologies and start states."""
    before, after = (
        pq.read_table(
            run.evaluate.networks,
            filters=[("source", "=", "nnit"), ("task", "=", "PushCube-v1")],
        ).to_pandas()
        for run in (RUN, TABLETOP)
    )
    kinds = after["kind"].isin(["combination", "width"])
    both = after[kinds].merge(before, on="policy_id")
    assert len(both) == 64
    assert (both["success_once_y"] - both["success_once_x"]).mean() <= 0.02


def test_measured_topologies_were_not_trained_on():
    model = load_model("PushCube-v1")
    config = RUN.settings("align")["topologies"]
    assert {width for hidden in model.distribution.seen for width in hidden} == set(
        config["widths"]
    )
    split = RUN.split()
    assert model.distribution.seen == split.seen
    for kind in WITHIN:
        for hidden in split.unseen[kind]:
            same_depth = [seen for seen in model.distribution.seen if len(seen) == len(hidden)]
            moves = [np.abs(np.subtract(seen, hidden)).max() for seen in same_depth]
            assert min(moves) > config["variation"], hidden


def test_what_is_written_does_not_depend_on_the_number_of_threads():
    model, threads = load_model("PushCube-v1"), torch.get_num_threads()
    written = []
    for count in (1, 2):
        torch.set_num_threads(count)
        written.append(model.generate((64, 40, 57), 1)[0].flat())
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert np.array_equal(*written)


def test_a_model_of_another_task_is_refused():
    with pytest.raises(NnitError, match="writes policies for PushCube-v1, not for PickCube-v1"):
        load_model("PickCube-v1", RUN.path)
