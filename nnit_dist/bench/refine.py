"""`nnit bench refine`: success after a little imitation, from NNiT's weights and random ones.

Both use the same teachers, states, numbers of steps and start states, and the same topologies,
which training never saw.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.bench.results import BenchSize, MeasuredHere, measured_here, write_results
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import count
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import UnseenKind, spread
from nnit_dist.nnit.model import load_model
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.results import Summary
from nnit_dist.rollout.summaries import success_interval, summarize
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.transfer.refine import load_distillation_data, refine

Start = Literal["nnit", "random"]
STARTS: dict[Start, str] = {"nnit": "NNiT's weights", "random": "random weights"}
KINDS: tuple[UnseenKind, ...] = ("combination", "width")


class RefinedSummary(Summary):
    """Success after `steps` of imitation, and the seconds that they take per network."""

    start: Start
    steps: int
    seconds: float


class RefineFigures(MeasuredHere):
    """What `nnit bench refine` measures.

    `topologies` are hidden widths; `written` is the success of NNiT's networks before refining.
    """

    task: str
    topologies: list[list[int]]
    samples: int
    sampler_steps: int
    episodes: int
    written: Summary
    refined: list[RefinedSummary]
    failures: dict[str, str]


def bench_refine(
    run: RunDirectory | None,
    task: str,
    steps: list[int],
    size: BenchSize,
    *,
    sampler_steps: int,
    out: Path,
    actors: int | None = None,
) -> RefineFigures:
    """Measure policies of unseen topologies, before and after refining; returns the figures.

    Reads one task of a finished run directory, the shipped one by default. Writes
    `out/refine.json`, `.md` and `.png`, and every episode (`out/episodes`), from which a killed
    benchmark resumes.

    Raises:
        NnitError: the run held out no topologies.
    """
    directory = run or shipped(task)
    held_out, model = directory.split().unseen, load_model(task, directory.path)
    distillation_data = load_distillation_data(directory, task, model.task.control_mode)
    topologies = [h for kind in KINDS for h in spread(held_out.get(kind, []), size.topologies)]
    if not topologies:
        raise NnitError(f"{directory} held out no topologies of kind {' or '.join(KINDS)}.")
    written = [p for h in topologies for p in model.generate(h, size.samples, 0, sampler_steps)]
    policies: list[Policy] = list(written)
    seconds: dict[str, float] = {}
    budgets = [(start, budget) for start in STARTS for budget in steps]
    with StageProgress("policies") as view:
        view.add("refine", total=len(written) * len(budgets))
        for number, (start, budget) in enumerate(budgets):
            first, began = number * len(written), time.perf_counter()
            refined, _ = refine(
                written,
                distillation_data,
                budget,
                watch=partial(_show, view, first),
                scratch=start == "random",
            )
            name = f"{start}_{budget}"
            seconds[name] = (time.perf_counter() - began) / len(written)
            policies += [replace(p, id=f"{p.id}_{name}", source=name) for p in refined]
    result = Evaluator(actors, title="refine").evaluate(policies, size.episodes, out)
    rows = result.rows()
    figures: RefineFigures = {
        "task": task,
        "topologies": [list(hidden) for hidden in topologies],
        "samples": size.samples,
        "sampler_steps": sampler_steps,
        "episodes": size.episodes,
        **measured_here(),
        "written": summarize([row for row in rows if row["source"] == "nnit"]),
        "refined": [
            {
                "start": start,
                "steps": budget,
                "seconds": seconds[f"{start}_{budget}"],
                **summarize([row for row in rows if row["source"] == f"{start}_{budget}"]),
            }
            for start, budget in budgets
        ],
        "failures": result.failures,
    }
    write_results(out, "refine", figures, text=as_markdown(figures), plot=plot(figures))
    return figures


def _show(view: StageProgress, before: int, done: int) -> None:
    view.update("refine", before + done)


def as_markdown(figures: RefineFigures) -> str:
    """The results as Markdown: success by steps of imitation, from either start."""
    refined = {(row["start"], row["steps"]): row for row in figures["refined"]}
    steps = sorted({row["steps"] for row in figures["refined"]})
    lines = [
        f"# Refining on {figures['task']}",
        "",
        f"`nnit bench refine`, {figures['date']}, {figures['machine']}. "
        f"{len(figures['topologies'])} topologies that training never saw (combinations and "
        f"widths), {figures['samples']} of each in {figures['sampler_steps']} steps of NNiT's "
        f"sampler, {figures['episodes']} episodes a network. "
        "success_once in %, mean and 95% interval over topologies; seconds a network on one core.",
        "",
        "| steps of imitation | seconds | "
        + " | ".join(f"from {s}" for s in STARTS.values())
        + " |",
        "| --- | --- | --- | --- |",
        f"| none | 0 | {success_interval(figures['written'])} | |",
    ]
    for budget in steps:
        cells = " | ".join(success_interval(refined[start, budget]) for start in STARTS)
        seconds = refined["nnit", budget]["seconds"]
        lines.append(f"| {count(budget)} | {seconds:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def plot(figures: RefineFigures) -> Figure:
    """Success against seconds of imitation, from either start."""
    figure = Figure(figsize=(5.2, 3))
    axes = figure.subplots()
    for start, color in zip(STARTS, ("#0969da", "#8c959f"), strict=True):
        refined = [row for row in figures["refined"] if row["start"] == start]
        seconds = [row["seconds"] for row in refined]
        rows: list[Summary] = [*refined]
        if start == "nnit":
            seconds, rows = [0.0, *seconds], [figures["written"], *rows]
        mean = [100 * row["success_once"] for row in rows]
        low, high = [100 * row["low"] for row in rows], [100 * row["high"] for row in rows]
        axes.fill_between(seconds, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(seconds, mean, "o-", color=color, label=f"from {STARTS[start]}")
    axes.set_ylim(0, 100)
    axes.set_xlabel("seconds of imitation a network, one core")
    axes.set_ylabel("success_once in %")
    axes.set_title(figures["task"], fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
