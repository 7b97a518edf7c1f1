"""The report stage: one self-contained HTML page, plots included."""

import base64
import html
import io
import shutil
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from nnit_dist.artifacts import write_atomic
from nnit_dist.evaluate.compare import headline
from nnit_dist.report import plots
from nnit_dist.report.film import film_unseen

if TYPE_CHECKING:
    from nnit_dist.pipeline import Run

STUDIES = """<h3>Sampler steps, and success asked for</h3>
$sampler
<p class="note">One network each of unseen topologies, means and 95% intervals over topologies.</p>
"""
TEMPLATE, TASK = (Path(__file__).with_name(name) for name in ("template.html", "task.html"))


def build_report(run: "Run", out: Path) -> dict[str, Any]:
    """Write `out/report.html`, `out/results.json`, `out/results.parquet` and the pictures.

    Reads the manifests and artefacts of every earlier stage. Pictures of a task lie in `out/TASK`.
    """
    rows = pq.read_table(run.out / "evaluate" / "results.parquet").to_pylist()
    for name in ("results.json", "results.parquet"):
        shutil.copy(run.out / "evaluate" / name, out / name)
    pictures = {
        "population": plots.population_curves(run.manifest("population")),
        "training": plots.training_curves(run.out),
    }
    fields = {
        "name": html.escape(run.config.name),
        "tasks": "".join(
            _task_section(run, task, [row for row in rows if row["task"] == task], out)
            for task in run.config.tasks
        ),
        "stages": _stage_table(run),
        "trials": _trial_table(run.manifest("population")["figures"]["trials"]),
        **_draw(pictures, out),
    }
    page = Template(TEMPLATE.read_text()).substitute(fields)
    write_atomic(out / "report.html", lambda partial: partial.write_text(page))
    return {"report": "report.html", "bytes": len(page)}


def _task_section(run: "Run", task: str, rows: list[dict[str, Any]], out: Path) -> str:
    """What a task's networks can do, as HTML."""
    figures = run.manifest("evaluate")["figures"]["tasks"][task]
    pictures = {
        "success": plots.success_by_topology(rows),
        "matrices": plots.weight_matrices(run, task),
    }
    if figures["studies"]:
        pictures["sampler"] = plots.sampler_studies(figures["studies"])
    film = film_unseen(run, task, out / task / "policies.mp4")
    fields = {
        "task": html.escape(task),
        "headline": headline(figures),
        "summary": _summary_table(figures["summaries"]),
        "topologies": _topology_table(rows),
        "film": f'<video autoplay loop muted playsinline controls src="{_data(film)}"></video>',
        **_draw(pictures, out / task),
    }
    fields["studies"] = Template(STUDIES).substitute(fields) if "sampler" in pictures else ""
    return Template(TASK.read_text()).substitute(fields)


def _draw(pictures: dict[str, Figure], out: Path) -> dict[str, str]:
    """Write the pictures; returns them as HTML."""
    out.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
    return {name: _image(out / f"{name}.png") for name in pictures}


def _image(path: Path) -> str:
    return f'<img alt="{path.stem}" src="{_data(path)}">'


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    out = io.StringIO()
    out.write("<table><tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>")
    for row in rows:
        out.write("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return out.getvalue() + "</table>"


def _summary_table(summaries: list[dict[str, Any]]) -> str:
    return _table(
        [
            "method",
            "topologies",
            "success once",
            "95% interval",
            "success at end",
            "networks",
            "episodes",
        ],
        [
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
        ],
    )


def _stage_table(run: "Run") -> str:
    work = {
        "population": "{env_steps:,} env steps",
        "align": "{steps:,} steps, action MSE {action_mse:.4f}",
        "train": "{steps:,} steps, {parameters:,} parameters",
        "generate": "{networks} networks, {milliseconds_a_network} ms each",
        "evaluate": "{networks} networks",
    }
    rows = []
    for stage, text in work.items():
        manifest = run.manifest(stage)
        minutes = f"{manifest['seconds'] / 60:.1f} min"
        rows.append([stage, minutes, text.format(**manifest["figures"]), manifest["machine"]])
    return _table(["stage", "time", "work", "machine"], rows)


def _trial_table(trials: dict[str, dict[str, Any]]) -> str:
    """What the teachers of each task cost."""
    rows = []
    for task in dict.fromkeys(name.split("_", 1)[0] for name in trials):
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
    return _table(header, rows)


def _topology_table(rows: list[dict[str, Any]]) -> str:
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] == "teacher":
            continue
        key = (row["kind"], "x".join(map(str, row["hidden"])))
        cells.setdefault(key, {}).setdefault(row["method"], []).append(row["success_once"])
    methods = ["direct GHN query", "NNiT"]
    return _table(
        ["kind", "hidden", *methods],
        [
            [kind, hidden, *(_mean(found.get(method, [])) for method in methods)]
            for (kind, hidden), found in sorted(cells.items())
        ],
    )


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"
