"""The report stage: one self-contained HTML page, plots included, and its tables in Markdown."""

import base64
import html
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from nnit_dist.core.files import copy, write_atomic
from nnit_dist.core.storage import local_file
from nnit_dist.report import plots, tables
from nnit_dist.report.film import film_unseen
from nnit_dist.rollout.summaries import headline

if TYPE_CHECKING:
    from nnit_dist.stages.pipeline import Run

STUDIES = """<h3>Sampler steps, and success asked for</h3>
$sampler
<p class="note">One network each of unseen topologies, means and 95% intervals over topologies.</p>
"""
TEMPLATE, TASK = (Path(__file__).with_name(name) for name in ("template.html", "task.html"))


def build_report(run: "Run", out: Path) -> dict[str, Any]:
    """Write `out/report.html`, `report.md`, `results.json`, `results.parquet` and the pictures.

    Reads the manifests and artefacts of every earlier stage. Pictures of a task lie in `out/TASK`.
    """
    for name in ("results.json", "results.parquet"):
        copy(run.out / "evaluate" / name, out / name)
    with local_file(out / "results.parquet") as file:
        rows = pq.read_table(file).to_pylist()
    pictures = {
        "population": plots.population_curves(run),
        "training": plots.training_curves(run.out),
    }
    fields = {
        "name": html.escape(run.config.name),
        "tasks": "".join(
            _task_section(run, task, [row for row in rows if row["task"] == task], out)
            for task in run.config.tasks
        ),
        "stages": tables.stage_table(run).html(),
        "trials": tables.trial_table(run).html(),
        **_draw(pictures, out),
    }
    page = Template(TEMPLATE.read_text()).substitute(fields)
    write_atomic(out / "report.html", lambda partial: partial.write_text(page))
    text = _as_markdown(run)
    write_atomic(out / "report.md", lambda partial: partial.write_text(text))
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


def _as_markdown(run: "Run") -> str:
    """Results and cost of all tasks, to paste."""
    samples, episodes = run.config.generate.samples, run.config.evaluate.episodes
    return f"""# {run.config.name}

success_once in %, mean and 95% interval over topologies: NNiT, zero-shot, {samples} \
samples a topology, {episodes} episodes a network, all counted; beside it the teachers.

{tables.task_table(run).markdown()}
{tables.trial_table(run).markdown()}
{tables.stage_table(run).markdown()}"""
