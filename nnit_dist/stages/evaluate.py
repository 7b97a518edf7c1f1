"""The evaluate stage: NNiT, the hypernetwork asked directly, and the teachers, side by side.

Reads: the policy files of the generate stage, the hypernetwork and the zoo.
Does: measures every method on the same topologies from the same start states.
Writes: `evaluate/results.json` (summaries by task), `evaluate/results.parquet` (one row a network)
and `evaluate/TASK/episodes` (one row an episode). Episodes that are there are not run again.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.artifacts.run_directory import EvaluateDirectory
from nnit_dist.core.files import write_atomic, write_json
from nnit_dist.core.policy import Policy, load_policies
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.rollout.evaluation import evaluate
from nnit_dist.rollout.summaries import (
    METHODS,
    paired_methods,
    summarize_methods,
    summarize_studies,
)
from nnit_dist.stages.plan import Figures, RunContext, StagePlan


def plan(context: RunContext) -> StagePlan:
    """The stage of a run; NnitError if what it reads is not finished."""
    run = context.run
    for stage in ("generate", "align", "population"):
        run.require(stage)
    inputs = {
        "policies": run.generate.policies,
        "ghn": run.hypernet(),
        "zoo": run.population.zoo.path,
    }
    if context.config.generate.studies:
        inputs["studies"] = run.generate.studies
    key = context.reads("tasks", "topologies", "evaluate", "seed")
    key["align"] = {"min_success": context.config.align.min_success}
    return StagePlan(
        "evaluate",
        key,
        inputs,
        lambda out: _evaluate(context, EvaluateDirectory(out)),
        repeatable=True,
    )


def _evaluate(context: RunContext, out: EvaluateDirectory) -> Figures:
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task in context.config.tasks:
        task_rows, figures[task] = _measure(context, task, out.task(task))
        rows += task_rows
    table = pa.Table.from_pylist(rows)
    write_atomic(out.networks, lambda partial: pq.write_table(table, partial))
    write_json(out.summaries, {"tasks": figures})
    return {"tasks": figures, "networks": len(rows)}


def _measure(context: RunContext, task: str, out: Path) -> tuple[list[dict[str, Any]], Figures]:
    """Rows of all methods' networks of a task, and what they come to."""
    config, run = context.config, context.run
    written = load_policies(run.generate.policies / task)
    studied = load_policies(run.generate.studies / task) if config.generate.studies else []
    teachers = [member.policy for member in run.teachers(task, config.align.min_success)]
    result = evaluate(
        [*teachers, *_direct_query(context, task, written), *written, *studied],
        config.evaluate.episodes,
        out,
        config.ray.actors,
        sim_backend=config.ray.sim_backend,
        title=task,
    )
    settings = {policy.id: policy.metadata for policy in studied}
    measured = result.rows()
    rows = [
        {"task": task, **row, **_method_and_kind(context, row)}
        for row in measured
        if row["policy_id"] not in settings
    ]
    studies = [row | settings[row["policy_id"]] for row in measured if row["policy_id"] in settings]
    return rows, {
        "summaries": summarize_methods(rows),
        "failures": result.failures,
        "paired": paired_methods(rows),
        "studies": summarize_studies(studies),
    }


def _direct_query(context: RunContext, task: str, written: list[Policy]) -> list[Policy]:
    """Of the topologies that NNiT wrote, as many networks by the hypernetwork itself.

    Without those that are wider than it writes.
    """
    model = HypernetModel.load(context.run.hypernet(), task)
    counts = Counter(policy.topology.hidden for policy in written)
    return [
        policy
        for hidden, count in counts.items()
        if model.writes(hidden)
        for policy in model.policies(hidden, count, context.config.seed)
    ]


def _method_and_kind(context: RunContext, row: dict[str, Any]) -> dict[str, str]:
    is_teacher = row["source"] == "rllib"
    kind = "teacher" if is_teacher else context.split.kind_of(tuple(row["hidden"]))
    return {"method": METHODS[row["source"]], "kind": kind}
