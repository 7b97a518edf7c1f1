"""The shipped model is what its manifests say, and reached what the README says."""

import numpy as np
import pytest
import torch

from nnit_dist.artifacts import content_hash, read_json
from nnit_dist.bench.generalization import split_of
from nnit_dist.errors import NnitError
from nnit_dist.pretrained import load_model, shipped
from nnit_dist.topology import UNSEEN_KINDS, WITHIN

RUN = shipped("PushCube-v1")


@pytest.mark.parametrize(
    ("stage", "name", "artefact"),
    [
        ("align", "zoo", "population/zoo"),
        ("train", "ghn", "align/ghn.safetensors"),
        ("evaluate", "ghn", "align/ghn.safetensors"),
        ("evaluate", "zoo", "population/zoo"),
    ],
)
def test_every_artefact_is_the_one_that_the_next_stage_read(stage, name, artefact):
    manifest = read_json(RUN / stage / "manifest.json")
    assert manifest["key"]["inputs"][name] == content_hash(RUN / artefact)


def test_unseen_topologies_reach_the_bar():
    """All samples of all unseen topologies, 100 episodes each, beside teachers."""
    summaries = read_json(RUN / "evaluate" / "results.json")["tasks"]["PushCube-v1"]["summaries"]
    found = {(row["method"], row["kind"]): row for row in summaries}
    unseen, teachers = found["NNiT", "all unseen"], found["teachers", "teacher"]
    for kind in UNSEEN_KINDS:
        row = found["NNiT", kind]
        assert row["topologies"] == len(split_of(RUN).unseen[kind]) >= 22
        assert row["episodes"] == 100 * row["networks"] == 200 * row["topologies"]
    assert unseen["success_once"] >= 0.95 * teachers["success_once"]


def test_measured_topologies_were_not_trained_on():
    model = load_model("PushCube-v1")
    config = read_json(RUN / "align" / "manifest.json")["key"]["config"]["topologies"]
    assert {width for hidden in model.seen for width in hidden} == set(config["widths"])
    split = split_of(RUN)
    assert model.seen == split.seen
    for kind in WITHIN:
        for hidden in split.unseen[kind]:
            same_depth = [seen for seen in model.seen if len(seen) == len(hidden)]
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
        load_model("PickCube-v1", RUN)
