"""The tables of the report, in HTML for the page and in Markdown."""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.formatting import count, decimal, share_range
from nnit_dist.core.topology import hidden_name
from nnit_dist.rollout.results import (
    MethodSummary,
    NetworkResult,
    Summary,
    TaskFigures,
    hidden_of,
)
from nnit_dist.rollout.summaries import ALL_UNSEEN, METHODS, success_interval

if TYPE_CHECKING:
    from nnit_dist.population.train import TrialFigures

NNIT = METHODS["nnit"]
WORK = {
    "population": "{env_steps:,} env steps",
    "align": "{steps:,} steps, action MSE {action_mse:.4f}",
    "train": "{steps:,} steps, {parameters:,} parameters",
    "generate": "{networks} networks, {milliseconds_a_network} ms each",
    "evaluate": "{networks} networks",
}


@dataclass(frozen=True)
class Table:
    """Cells under a header."""

    header: list[str]
    rows: list[list[str]]

    def html(self) -> str:
        """The table as HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = (
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{''.join(body)}</table>"

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def summary_table(summaries: list[MethodSummary]) -> Table:
    """Success of every method on every kind of topology, for one task."""
    header = [
        "method",
        "topologies",
        "success once",
        "95% interval",
        "success at end",
        "networks",
        "episodes",
    ]
    rows = [
        [
            row["method"],
            row["kind"],
            f"{row['success_once']:.3f}",
            share_range(row["low"], row["high"], 3),
            f"{row['success_at_end']:.3f}",
            str(row["networks"]),
            count(row["episodes"]),
        ]
        for row in summaries
    ]
    return Table(header, rows)


def task_table(run: RunDirectory) -> Table:
    """One row per task: success_once in % of the teachers, then of NNiT by kind of topology."""
    figures: dict[str, TaskFigures] = run.figures("evaluate")["tasks"]
    by_kind: dict[str, dict[str, Summary]] = {
        task: {row["kind"]: row for row in figures[task]["summaries"] if row["method"] == NNIT}
        for task in run.tasks()
    }
    kinds = list(dict.fromkeys(kind for summaries in by_kind.values() for kind in summaries))
    rows = []
    for task, summaries in by_kind.items():
        teachers = [row for row in figures[task]["summaries"] if row["kind"] == "teacher"]
        cells = [success_interval(summaries.get(kind)) for kind in kinds]
        rows.append([task, success_interval(teachers[0] if teachers else None), *cells])
    names = [kind if kind in ("seen", ALL_UNSEEN) else f"unseen: {kind}" for kind in kinds]
    return Table(["task", "teachers", *names], rows)


def stage_table(run: RunDirectory) -> Table:
    """Wall time, work and machine of every stage."""
    rows = []
    for stage, text in WORK.items():
        manifest = run.manifest(stage)
        minutes = f"{manifest['seconds'] / 60:.1f} min"
        rows.append([stage, minutes, text.format(**manifest["figures"]), manifest["machine"]])
    return Table(["stage", "time", "work", "machine"], rows)


def trial_table(run: RunDirectory) -> Table:
    """Trials, env steps, time and validation success of each task's population."""
    trials: dict[str, TrialFigures] = run.figures("population")["trials"]
    rows = []
    for task in run.tasks():
        taught = [trial for name, trial in trials.items() if name.split("_", 1)[0] == task]
        best = [trial["success_once"] for trial in taught]
        seconds = sum(trial["seconds"] for trial in taught)
        rows.append(
            [
                task,
                str(len(taught)),
                count(sum(trial["env_steps"] for trial in taught)),
                f"{seconds / 60:.1f}" if seconds else "-",
                share_range(min(best), max(best), 2),
            ]
        )
    header = ["task", "trials", "env steps", "minutes of all trials", "validation success"]
    return Table(header, rows)


def topology_table(results: list[NetworkResult]) -> Table:
    """Mean success_once on every topology of one task, by method."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        if result["kind"] == "teacher":
            continue
        key = (result["kind"], hidden_name(hidden_of(result)))
        by_method = groups.setdefault(key, {})
        by_method.setdefault(result["method"], []).append(result["success_once"])
    methods = [METHODS["ghn"], METHODS["nnit"]]
    return Table(
        ["kind", "hidden", *methods],
        [
            [kind, hidden, *(_mean(by_method.get(method, [])) for method in methods)]
            for (kind, hidden), by_method in sorted(groups.items())
        ],
    )


def _mean(values: list[float]) -> str:
    return decimal(sum(values) / len(values) if values else None, 2)
