"""Records of results keep the keys of the files that they are written to and read from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.networks import TASK, random_policy

from nnit_dist.artifacts.legacy import KINDS
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.files import write_json
from nnit_dist.core.task import TaskInfo
from nnit_dist.rollout import results
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.evaluation import Evaluation
from nnit_dist.rollout.results import NetworkResult, PolicyResult, hidden_of
from nnit_dist.rollout.scores import Scores
from nnit_dist.rollout.summaries import (
    headline,
    paired_results,
    summarize,
    summarize_methods,
    summarize_studies,
)


def keys(record: type) -> set[str]:
    return set(record.__annotations__)


def measured(returns: float = 1.5) -> Evaluation:
    """Two policies of two topologies, two episodes each."""
    policies = [random_policy((16, 8), 0, "a"), random_policy((8,), 1, "b")]
    scores = Scores(2, (1, 2))
    for index, policy_flags in enumerate(([True, False], [True, True])):
        flags = pa.array(policy_flags).to_numpy(zero_copy_only=False)
        scores.add(index, Rollouts((1, 2), flags, flags, flags * 0 + returns))
    info = TaskInfo(TASK, "pd_joint_delta_pos", 35, 8, 50, "panda")
    return Evaluation(list(policies), scores, {}, info)


@pytest.mark.parametrize("returns", [1.5, float("nan")])
def test_a_row_is_a_policy_result_and_comes_back_from_json(returns, tmp_path):
    rows = measured(returns).rows()
    assert all(set(row) == keys(PolicyResult) for row in rows)
    assert json.loads(write_json(tmp_path / "rows.json", rows).read_text()) == rows
    assert [hidden_of(row) for row in rows] == [(16, 8), (8,)]
    assert [row["return"] for row in rows] == [None if returns != returns else returns] * 2


def test_a_row_comes_back_from_parquet(tmp_path):
    rows: list[NetworkResult] = [
        {"task": TASK, **row, "method": "NNiT", "kind": "seen"} for row in measured().rows()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows


def test_summaries_have_the_keys_of_their_records():
    rows = measured().rows()
    assert set(summarize(rows)) == keys(results.Summary)
    (teachers,) = summarize_methods(
        [{**row, "task": TASK, "method": "teachers", "kind": "teacher"} for row in rows]
    )
    assert set(teachers) == keys(results.MethodSummary)
    assert set(paired_results(rows, rows)) == keys(results.PairedDifference)
    studies = summarize_studies([{**row, "study": "steps", "setting": "8"} for row in rows])
    assert set(studies) == {"steps"}
    assert set(studies["steps"][0]) == keys(results.StudySummary)


def test_the_figures_of_shipped_runs_are_those_records():
    run = shipped(TASK)
    figures = run.summaries()[TASK]
    assert set(figures) == keys(results.TaskFigures) - {"control_mode", "robot"}  # an earlier run
    assert all(set(row) == keys(results.MethodSummary) for row in figures["summaries"])
    assert set(figures["paired"]) == keys(results.PairedDifference)
    assert set(figures["studies"]) == keys(results.Studies)
    for study in results.STUDIES:
        assert all(set(row) == keys(results.StudySummary) for row in figures["studies"][study])
    networks = pq.read_table(run.evaluate.networks)
    assert set(networks.column_names) == keys(NetworkResult)
    rows = [row | {"kind": KINDS.get(row["kind"], row["kind"])} for row in networks.to_pylist()]
    assert summarize_methods(rows) == figures["summaries"]
    assert headline(figures).startswith("Nobody trained these: ")
    assert "their teachers in" in headline(figures)
    untaught = [row for row in figures["summaries"] if row["kind"] != "teacher"]
    assert "teachers" not in headline(figures | {"summaries": untaught})
