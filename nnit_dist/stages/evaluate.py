"""The evaluation stage: NNiT, the hypernetwork asked directly, and the teachers, side by side."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.core.files import write_atomic, write_json
from nnit_dist.core.policy import load_policies
from nnit_dist.core.splits import TopologySplit
from nnit_dist.core.task import SimBackend
from nnit_dist.core.topology import Hidden
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.population.train import teachers
from nnit_dist.rollout.evaluation import evaluate
from nnit_dist.rollout.summaries import (
    METHODS,
    paired_methods,
    summarize_methods,
    summarize_studies,
)


def run_evaluation(
    tasks: list[str],
    generated: Path,
    studies: Path | None,
    ghn: Path,
    population: Path,
    split: TopologySplit,
    topologies: list[Hidden],
    samples: int,
    episodes: int,
    min_success: float,
    seed: int,
    out: Path,
    actors: int | None,
    sim_backend: SimBackend,
) -> dict[str, Any]:
    """Measure every method on the same start states, task by task; returns summaries.

    Reads policy files (and those of the studies, if any) below a directory a task, the hypernetwork
    and the zoo. Writes `out/results.parquet` (one row a network), `out/results.json` (the
    summaries by task) and `out/TASK/episodes` (one row an episode).
    """
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task in tasks:
        taught = [m.policy for m in teachers(population, task) if m.success_once >= min_success]
        sampler = HypernetModel.load(ghn, task)
        written = filter(sampler.writes, topologies)
        asked = [p for hidden in written for p in sampler.policies(hidden, samples, seed)]
        studied = load_policies(studies / task) if studies else []
        policies = [*taught, *asked, *load_policies(generated / task), *studied]
        result = evaluate(
            policies, episodes, out / task, actors, sim_backend=sim_backend, title=task
        )
        about = {policy.id: policy.metadata for policy in studied}
        measured = result.rows()
        own = [{"task": task, **row} for row in measured if row["policy_id"] not in about]
        for row in own:
            row["method"] = METHODS[row["source"]]
            is_teacher = row["source"] == "rllib"
            row["kind"] = "teacher" if is_teacher else split.kind_of(tuple(row["hidden"]))
        rows += own
        found[task] = {
            "summaries": summarize_methods(own),
            "failures": result.failures,
            "paired": paired_methods(own),
            "studies": summarize_studies(
                [row | about[row["policy_id"]] for row in measured if row["policy_id"] in about]
            ),
        }
    table = pa.Table.from_pylist(rows)
    write_atomic(out / "results.parquet", lambda partial: pq.write_table(table, partial))
    write_json(out / "results.json", {"tasks": found})
    return {"tasks": found, "networks": len(rows)}
