"""The shipped model is what its manifests say, and reached what the README says."""

import pytest

from nnit_dist.artifacts import content_hash, read_json
from nnit_dist.errors import NnitError
from nnit_dist.pretrained import load_model, shipped
from nnit_dist.topology import UNSEEN_KINDS

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
    """All samples of at least 24 unseen topologies a kind, 100 episodes each, beside teachers."""
    summaries = read_json(RUN / "evaluate" / "results.json")["summaries"]
    found = {(row["method"], row["kind"]): row for row in summaries}
    unseen, teachers = found["NNiT", "all unseen"], found["teachers", "teacher"]
    for kind in UNSEEN_KINDS:
        row = found["NNiT", kind]
        assert row["topologies"] >= 24
        assert row["episodes"] == 100 * row["networks"] == 200 * row["topologies"]
    assert unseen["success_once"] >= 0.95 * teachers["success_once"]


def test_measured_topologies_were_not_trained_on():
    model = load_model("PushCube-v1")
    config = read_json(RUN / "align" / "manifest.json")["key"]["config"]["topologies"]
    assert {width for hidden in model.seen for width in hidden} == set(config["widths"])


def test_a_model_of_another_task_is_refused():
    with pytest.raises(NnitError, match="writes policies for PushCube-v1, not for PickCube-v1"):
        load_model("PickCube-v1", RUN)
