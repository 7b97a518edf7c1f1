"""The report stage: one page with the results of a run.

Reads: results, models and manifests of all earlier stages.
Does: draws pictures and films, and writes tables.
Writes: `report/report.html`, which needs no other file, and `report/report.md`.
"""

from nnit_dist.artifacts.run_directory import ReportDirectory
from nnit_dist.report.build import build_report
from nnit_dist.stages.plan import RunContext, StagePlan


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if the train or evaluate stage is not finished."""
    run = context.run
    for stage in ("evaluate", "train"):
        run.require(stage)
    return StagePlan(
        "report",
        {"name": context.config.name},
        {"results": run.evaluate.summaries, "model": run.nnit()},
        lambda out: build_report(run, context.config.name, ReportDirectory(out)),
        uses_ray=False,
        repeatable=True,
    )
