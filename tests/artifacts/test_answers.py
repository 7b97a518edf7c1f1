"""The shipped models still answer as they did: the same seeds give the same policies and episodes.

`shipped_answers.json` was written by the first design, before anything was moved; its parts
"direct" and "refine" again when all random numbers came to be drawn from named streams.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import UNSEEN_KINDS
from nnit_dist.core.task import DEFAULT_CONTROL_MODE
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import load_model
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.transfer.refine import load_distillation_data, refine

KNOWN = json.loads(Path(__file__).with_name("shipped_answers.json").read_text())


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def check(policies: list[Policy], known: list[dict]) -> None:
    """Equal to the last bit on the processor that wrote them, to rounding on another."""
    assert [policy.id for policy in policies] == [row["id"] for row in known]
    for policy, row in zip(policies, known, strict=True):
        if processor() == KNOWN["cpu"]:
            assert policy.fingerprint() == row["fingerprint"], policy.id
        count = 3 * policy.topology.obs_dim
        obs = np.linspace(-1, 1, count).reshape(3, -1).astype(np.float32)
        assert np.allclose(policy.forward(obs), row["outputs"], atol=1e-3), policy.id


def written(row: dict) -> list[Policy]:
    return load_model(row["task"]).generate(tuple(row["hidden"]), row["samples"], **row["how"])


@pytest.mark.parametrize("row", KNOWN["generate"], ids=lambda row: str(row["hidden"]))
def test_nnit_writes_the_same_policies(row):
    check(written(row), row["policies"])


@pytest.mark.parametrize("row", KNOWN["direct"], ids=lambda row: row["task"])
def test_the_hypernetwork_writes_the_same_policies(row):
    model = HypernetModel.load(shipped(row["task"]).hypernet(), row["task"])
    check(model.policies(tuple(row["hidden"]), 2, row["seed"]), row["policies"])


def test_policies_are_refined_alike():
    task = "LiftPegUpright-v1"
    policies = [p for row in KNOWN["generate"] if row["task"] == task for p in written(row)]
    (known,) = KNOWN["refine"]
    refined, errors = refine(
        policies, load_distillation_data(shipped(task), task, DEFAULT_CONTROL_MODE), 20, 0
    )
    assert np.allclose(errors, known["errors"], rtol=1e-3)
    for policy, row in zip(refined, known["policies"], strict=True):
        obs = np.linspace(-1, 1, 3 * policy.topology.obs_dim).reshape(3, -1).astype(np.float32)
        assert np.allclose(policy.forward(obs), row["outputs"], atol=1e-2)


def test_policies_have_the_same_episodes():
    policies = {p.id: p for row in KNOWN["generate"] for p in written(row)}
    for known in KNOWN["evaluate"]:
        found = Evaluator(actors=1).evaluate(policies[known["policy"]], 4, returns=True).rows()
        for row, before in zip(found, known["rows"], strict=True):
            for name in ("success_once", "success_at_end", "episodes"):
                assert row[name] == before[name], known["policy"]
            assert row["return"] == pytest.approx(before["return"], rel=1e-6)


@pytest.mark.parametrize("task", KNOWN["teachers"])
def test_zoos_hold_the_same_teachers(task):
    found = shipped(task).teachers(task)
    rows = [[m.policy.id, m.success_once, m.policy.fingerprint()] for m in found]
    assert rows == KNOWN["teachers"][task]


@pytest.mark.parametrize(
    ("name", "task"), [("pushcube", "PushCube-v1"), ("tabletop", "PickCube-v1")]
)
def test_splits_and_drawn_architectures_are_the_same(name, task):
    split, known = shipped(task).split(), KNOWN["splits"][name]
    assert split.seen == [tuple(hidden) for hidden in known["seen"]]
    old_names = {"bottleneck": "apart"}
    for kind in UNSEEN_KINDS:
        held = known["unseen"][old_names.get(kind, kind)]
        assert split.unseen[kind] == [tuple(hidden) for hidden in held]
    drawn = load_model(task).draw_architectures(6, 0)
    assert drawn == [tuple(hidden) for hidden in KNOWN["drawn"][name]]
