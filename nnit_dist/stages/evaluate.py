"""The evaluate stage: measure the networks of NNiT, direct GHN queries, and the teachers.

Reads: the policy files of the generate stage, the hypernetwork and the zoo.
Does: measures every method on the same topologies from the same start states.
Writes: `evaluate/results.json` (summaries by task), `evaluate/results.parquet` (one row per
network) and `evaluate/TASK/episodes` (one row per episode). Stored episodes are not run again.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.artifacts.run_directory import EvaluateDirectory
from nnit_dist.core.files import write_atomic, write_json
from nnit_dist.core.policy import Policy, load_policies
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.results import (
    NetworkResult,
    PolicyResult,
    StudyResult,
    TaskFigures,
    hidden_of,
)
from nnit_dist.rollout.summaries import (
    METHODS,
    paired_methods,
    summarize_methods,
    summarize_studies,
)
from nnit_dist.stages.plan import Figures, RunContext, StagePlan


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if a stage that it reads is not finished."""
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
    figures: dict[str, TaskFigures] = {}
    results: list[NetworkResult] = []
    for task in context.config.tasks:
        task_results, figures[task] = _measure(context, task, out.task(task))
        results += task_results
    table = pa.Table.from_pylist(results)
    write_atomic(out.networks, lambda partial: pq.write_table(table, partial))
    write_json(out.summaries, {"tasks": figures})
    return {"tasks": figures, "networks": len(results)}


def _measure(context: RunContext, task: str, out: Path) -> tuple[list[NetworkResult], TaskFigures]:
    """Measure all methods on a task; returns one result per network, and their summaries."""
    config, run = context.config, context.run
    written = load_policies(run.generate.policies / task)
    studied = load_policies(run.generate.studies / task) if config.generate.studies else []
    teachers = [member.policy for member in run.teachers(task, config.align.min_success)]
    evaluator = Evaluator(config.ray.actors, config.ray.sim_backend, title=task)
    evaluation = evaluator.evaluate(
        [*teachers, *_direct_query(context, task, written), *written, *studied],
        config.evaluate.episodes,
        out,
    )
    settings = {policy.id: policy.metadata for policy in studied}
    rows = evaluation.rows()
    results = [
        _network_result(context, task, row) for row in rows if row["policy_id"] not in settings
    ]
    studies = [
        _study_result(row, settings[row["policy_id"]])
        for row in rows
        if row["policy_id"] in settings
    ]
    return results, {
        "control_mode": evaluation.info.control_mode,
        "robot": evaluation.info.robot,
        "summaries": summarize_methods(results),
        "failures": evaluation.failures,
        "paired": paired_methods(results),
        "studies": summarize_studies(studies),
    }


def _direct_query(context: RunContext, task: str, written: list[Policy]) -> list[Policy]:
    """Networks that the hypernetwork writes directly: as many of each topology as NNiT wrote.

    Topologies that are too wide for the hypernetwork are left out.
    """
    model = HypernetModel.load(context.run.hypernet(), task)
    counts = Counter(policy.topology.hidden for policy in written)
    return [
        policy
        for hidden, count in counts.items()
        if model.writes(hidden)
        for policy in model.policies(hidden, count, context.config.seed)
    ]


def _network_result(context: RunContext, task: str, row: PolicyResult) -> NetworkResult:
    kind = "teacher" if row["source"] == "rllib" else context.split.kind_of(hidden_of(row))
    return {"task": task, **row, "method": METHODS[row["source"]], "kind": kind}


def _study_result(row: PolicyResult, metadata: dict[str, str]) -> StudyResult:
    return {**row, "study": metadata["study"], "setting": metadata["setting"]}
