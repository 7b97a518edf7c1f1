"""`nnit bench refine`: what a little training makes of a policy, from NNiT's weights and from none.

The same topologies, which training never saw, the same teachers, states, steps and start states.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.bench.results import measured_here, write_results
from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import UnseenKind, spread
from nnit_dist.nnit.model import load_model
from nnit_dist.rollout.evaluation import evaluate
from nnit_dist.rollout.summaries import summarize
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.transfer.refine import load_distillation_data, refine

STARTS = {"nnit": "NNiT's weights", "random": "random weights"}
KINDS: tuple[UnseenKind, ...] = ("combination", "width")


def bench_refine(
    run: RunDirectory | None,
    task: str,
    steps: list[int],
    count: int,
    samples: int,
    sampler_steps: int,
    episodes: int,
    out: Path,
    actors: int | None,
) -> dict[str, Any]:
    """Measure policies of `count` unseen topologies a kind, before and after refining.

    Reads one task of a finished run directory, the shipped one by default. Writes
    `out/refine.json`, `.md` and `.png`, and every episode (`out/episodes`), from which a killed
    bench goes on.
    """
    place = run or shipped(task)
    held, model, distillation_data = (
        place.split().unseen,
        load_model(task, run.path if run else None),
        load_distillation_data(place, task),
    )
    topologies = [h for kind in KINDS for h in spread(held.get(kind, []), count)]
    if not topologies:
        raise NnitError(f"{place} held out no topologies of kind {' or '.join(KINDS)}.")
    written = [p for h in topologies for p in model.generate(h, samples, 0, sampler_steps)]
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
    result = evaluate(policies, episodes, out, actors, title="refine")
    rows = result.rows()
    figures = {
        "task": task,
        "topologies": [list(hidden) for hidden in topologies],
        "samples": samples,
        "sampler_steps": sampler_steps,
        "episodes": episodes,
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
    write_results(out, "refine", figures, as_markdown(figures), plot(figures))
    return figures


def _show(view: StageProgress, before: int, done: int) -> None:
    view.update("refine", before + done)


def as_markdown(figures: dict[str, Any]) -> str:
    """Success against steps, from either start."""
    found = {(row["start"], row["steps"]): row for row in figures["refined"]}
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
        f"| none | 0 | {_percent(figures['written'])} | |",
    ]
    for budget in steps:
        cells = [_percent(found[start, budget]) for start in STARTS]
        lines.append(
            f"| {budget:,} | {found['nnit', budget]['seconds']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def plot(figures: dict[str, Any]) -> Figure:
    """Success against seconds of imitation."""
    figure = Figure(figsize=(5.2, 3))
    axes = figure.subplots()
    for start, denormalize in zip(STARTS, ("#0969da", "#8c959f"), strict=True):
        rows = [row for row in figures["refined"] if row["start"] == start]
        if start == "nnit":
            rows = [figures["written"] | {"seconds": 0.0}, *rows]
        mean, low, high = (
            [100 * row[key] for row in rows] for key in ("success_once", "low", "high")
        )
        seconds = [row["seconds"] for row in rows]
        axes.fill_between(seconds, low, high, color=denormalize, alpha=0.2, lw=0)
        axes.plot(seconds, mean, "o-", color=denormalize, label=f"from {STARTS[start]}")
    axes.set_ylim(0, 100)
    axes.set_xlabel("seconds of imitation a network, one core")
    axes.set_ylabel("success_once in %")
    axes.set_title(figures["task"], fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _percent(row: dict[str, Any]) -> str:
    once, low, high = (100 * row[key] for key in ("success_once", "low", "high"))
    return f"{once:.1f} ({low:.1f}-{high:.1f})"
