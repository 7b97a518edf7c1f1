"""The tables of the report, as cells; in HTML for the page and in Markdown to paste."""

import html
from dataclasses import dataclass
from typing import Any

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.rollout.summaries import ALL_UNSEEN

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
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = (
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{''.join(body)}</table>"

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def summary_table(summaries: list[dict[str, Any]]) -> Table:
    """Every method on every kind of topology of one task."""
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
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['success_at_end']:.3f}",
            str(row["networks"]),
            f"{row['episodes']:,}",
        ]
        for row in summaries
    ]
    return Table(header, rows)


def task_table(run: RunDirectory) -> Table:
    """Tasks under each other: teachers, then NNiT by kind of topology; success once in %."""
    figures = run.figures("evaluate")["tasks"]
    found = {
        task: {(row["method"], row["kind"]): row for row in figures[task]["summaries"]}
        for task in run.tasks()
    }
    kinds = list(dict.fromkeys(k for own in found.values() for m, k in own if m == "NNiT"))
    rows = []
    for task, own in found.items():
        cells = [_percent(own.get(("NNiT", kind))) for kind in kinds]
        rows.append([task, _percent(own.get(("teachers", "teacher"))), *cells])
    names = [kind if kind in ("seen", ALL_UNSEEN) else f"unseen: {kind}" for kind in kinds]
    return Table(["task", "teachers", *names], rows)


def stage_table(run: RunDirectory) -> Table:
    """What every stage cost."""
    rows = []
    for stage, text in WORK.items():
        manifest = run.manifest(stage)
        minutes = f"{manifest['seconds'] / 60:.1f} min"
        rows.append([stage, minutes, text.format(**manifest["figures"]), manifest["machine"]])
    return Table(["stage", "time", "work", "machine"], rows)


def trial_table(run: RunDirectory) -> Table:
    """What the teachers of each task cost."""
    rows, trials = [], run.figures("population")["trials"]
    for task in run.tasks():
        own = [trial for name, trial in trials.items() if name.split("_", 1)[0] == task]
        best = [trial["success_once"] for trial in own]
        seconds = sum(trial["seconds"] for trial in own)
        rows.append(
            [
                task,
                str(len(own)),
                f"{sum(trial['env_steps'] for trial in own):,}",
                f"{seconds / 60:.1f}" if seconds else "-",
                f"{min(best):.2f} to {max(best):.2f}",
            ]
        )
    header = ["task", "trials", "env steps", "minutes of all trials", "validation success"]
    return Table(header, rows)


def topology_table(rows: list[dict[str, Any]]) -> Table:
    """Mean success on every topology of one task."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] == "teacher":
            continue
        key = (row["kind"], "x".join(map(str, row["hidden"])))
        cells.setdefault(key, {}).setdefault(row["method"], []).append(row["success_once"])
    methods = ["direct GHN query", "NNiT"]
    return Table(
        ["kind", "hidden", *methods],
        [
            [kind, hidden, *(_mean(found.get(method, [])) for method in methods)]
            for (kind, hidden), found in sorted(cells.items())
        ],
    )


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"


def _percent(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    once, low, high = (100 * row[key] for key in ("success_once", "low", "high"))
    return f"{once:.1f} ({low:.1f}-{high:.1f})"
