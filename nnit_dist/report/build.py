"""The report of a run: one self-contained HTML page, plots included, and its tables in Markdown."""

import base64
import html
from functools import partial
from pathlib import Path
from string import Template
from typing import TypedDict

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import ReportDirectory, RunDirectory
from nnit_dist.core.files import copy, write_atomic
from nnit_dist.core.storage import local_file
from nnit_dist.report import plots, tables
from nnit_dist.report.film import film_unseen
from nnit_dist.rollout.results import NetworkResult, TaskFigures, task_title
from nnit_dist.rollout.summaries import headline

STUDIES = """<h3>Sampler steps, and success asked for</h3>
$sampler
<p class="note">One network each of unseen topologies, means and 95% intervals over topologies.</p>
"""
TEMPLATE, TASK = (Path(__file__).with_name(name) for name in ("template.html", "task.html"))


class ReportFigures(TypedDict):
    """File name of the HTML page, and its length in characters."""

    report: str
    bytes: int


def build_report(run: RunDirectory, name: str, out: ReportDirectory) -> ReportFigures:
    """Write the page, its tables in Markdown, copies of the results, and the pictures.

    Reads the manifests and artifacts of every earlier stage. Each task's pictures go to `out/TASK`.
    """
    for results in (run.evaluate.summaries, run.evaluate.networks):
        copy(results, out.path / results.name)
    with local_file(run.evaluate.networks) as file:
        rows: list[NetworkResult] = pq.read_table(file).to_pylist()
    pictures = {
        "population": plots.population_curves(run),
        "training": plots.training_curves(run),
    }
    fields = {
        "name": html.escape(name),
        "tasks": "".join(
            _task_section(run, task, [row for row in rows if row["task"] == task], out.path)
            for task in run.tasks()
        ),
        "stages": tables.stage_table(run).html(),
        "trials": tables.trial_table(run).html(),
        **_draw(pictures, out.path),
    }
    page = Template(TEMPLATE.read_text()).substitute(fields)
    write_atomic(out.page, lambda partial: partial.write_text(page))
    text = _as_markdown(run, name)
    write_atomic(out.text, lambda partial: partial.write_text(text))
    return {"report": out.page.name, "bytes": len(page)}


def _task_section(run: RunDirectory, task: str, rows: list[NetworkResult], out: Path) -> str:
    """The HTML section on one task: figures, pictures, tables and a film."""
    figures: TaskFigures = run.figures("evaluate")["tasks"][task]
    pictures = {
        "success": plots.success_by_topology(rows),
        "matrices": plots.weight_matrices(run, task),
    }
    if figures["studies"]:
        pictures["sampler"] = plots.sampler_studies(figures["studies"])
    film = film_unseen(run, task, out / task / "policies.mp4")
    fields = {
        "task": html.escape(task_title(task, figures)),
        "headline": html.escape(headline(figures)),
        "summary": tables.summary_table(figures["summaries"]).html(),
        "topologies": tables.topology_table(rows).html(),
        "film": f'<video autoplay loop muted playsinline controls src="{_data(film)}"></video>',
        **_draw(pictures, out / task),
    }
    fields["studies"] = Template(STUDIES).substitute(fields) if "sampler" in pictures else ""
    return Template(TASK.read_text()).substitute(fields)


def _draw(pictures: dict[str, Figure], out: Path) -> dict[str, str]:
    """Write the pictures; returns them as HTML."""
    for name, figure in pictures.items():
        save = partial(figure.savefig, dpi=110, bbox_inches="tight")
        write_atomic(out / f"{name}.png", save)
    return {name: _image(out / f"{name}.png") for name in pictures}


def _image(path: Path) -> str:
    return f'<img alt="{path.stem}" src="{_data(path)}">'


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _as_markdown(run: RunDirectory, name: str) -> str:
    """The results and costs of all tasks, as Markdown."""
    samples = run.settings("generate")["generate"]["samples"]
    episodes = run.settings("evaluate")["evaluate"]["episodes"]
    return f"""# {name}

success_once in %, mean and 95% interval over topologies: NNiT, zero-shot, {samples} \
samples a topology, {episodes} episodes a network, all counted; beside it the teachers.

{tables.task_table(run).markdown()}
{tables.trial_table(run).markdown()}
{tables.stage_table(run).markdown()}"""
