"""`nnit bench generalization`: NNiT beside baselines, on topologies that training never saw.

All from the same run's zoo and hypernetwork, all samples counted, from the same start states.
The topologies of kind `width` are drawn anew, apart from those that the run itself measured.
"""

import os
import platform
import random
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.artifacts import read_json, write_atomic, write_json
from nnit_dist.baselines import Generator
from nnit_dist.baselines.crops import AlignedCrops, PatchGaussian, TrainedCrops
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.compare import paired_rows
from nnit_dist.evaluate.run import evaluate, summarize
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.policy import Policy
from nnit_dist.population.run import teachers
from nnit_dist.topology import Hidden, grid, split_topologies

ABOUT = {
    "nnit": "NNiT",
    "ghn": "direct GHN query",
    "aligned_crop": "nearest seen aligned network, cropped or padded",
    "crop_average": "average of 16 cropped aligned networks",
    "patch_gaussian": "every aligned patch from its own Gaussian",
    "trained_crop": "a trained policy, cropped or padded",
}
AVERAGED = 16


def bench_generalization(
    run: Path, widths: int, samples: int, episodes: int, out: Path, actors: int | None
) -> dict[str, Any]:
    """Measure every method; returns and writes the figures.

    Reads a finished run directory. Writes `out/generalization.json`, `.md` and `.png`, and every
    episode (`out/episodes`), from which a killed bench goes on.
    """
    model = NNiTModel.load(run / "train" / "nnit.safetensors")
    topologies = unseen_topologies(run, model, widths)
    kinds = {hidden: kind for kind, held in topologies.items() for hidden in held}
    policies: list[Policy] = []
    for generator in _generators(run, model):
        for hidden in kinds:
            policies += generator.generate(hidden, samples, 0)
    result = evaluate(policies, episodes, out, actors, title="generalization")
    rows = [row | {"kind": kinds[tuple(row["hidden"])]} for row in result.rows()]
    figures = {
        "task": model.task.name,
        "samples": samples,
        "episodes": episodes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "topologies": {kind: [list(h) for h in held] for kind, held in topologies.items()},
        "methods": [_compared(rows, kind, method) for kind in topologies for method in ABOUT],
        "failures": result.failures,
    }
    write_json(out / "generalization.json", figures)
    text = as_markdown(figures)
    write_atomic(out / "generalization.md", lambda partial: partial.write_text(text))
    plot(figures).savefig(out / "generalization.png", dpi=110, bbox_inches="tight")
    return figures


def unseen_topologies(run: Path, model: NNiTModel, widths: int) -> dict[str, list[Hidden]]:
    """The run's held-out combinations, and `widths` fresh topologies with unseen widths.

    Raises:
        NnitError: there are not so many.
    """
    config = read_json(run / "evaluate" / "manifest.json")["key"]["config"]
    about = config["topologies"]
    split = split_topologies(
        about["widths"], about["depths"], about["unseen_widths"], about["unseen"], config["seed"]
    )
    measured = set(split.unseen.get("width", []))
    within = [width for width in model.vocabulary.widths if width >= min(about["widths"])]
    strange = set(within) - set(about["widths"])
    pool = [hidden for hidden in grid(within, about["depths"]) if set(hidden) & strange]
    fresh = [hidden for hidden in pool if hidden not in measured]
    if widths > len(fresh):
        raise NnitError(f"there are only {len(fresh)} topologies with unseen widths left.")
    drawn = random.Random(1).sample(fresh, widths)
    found = {"combination": split.unseen.get("combination", []), "width": sorted(drawn)}
    return {kind: held for kind, held in found.items() if held}


class _Direct:
    """The hypernetwork asked for the topology itself."""

    name = "ghn"

    def __init__(self, sampler: AlignedSampler) -> None:
        self.sampler = sampler

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        return self.sampler.policies(hidden, samples, seed)


class _NNiT:
    name = "nnit"

    def __init__(self, model: NNiTModel) -> None:
        self.model = model

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        return self.model.generate(hidden, samples, seed)


def _generators(run: Path, model: NNiTModel) -> list[Generator]:
    sampler = AlignedSampler.load(run / "align" / "ghn.safetensors")
    population = [member.policy for member in teachers(run / "population")]
    return [
        _NNiT(model),
        _Direct(sampler),
        AlignedCrops(sampler, 1, "aligned_crop"),
        AlignedCrops(sampler, AVERAGED, "crop_average"),
        PatchGaussian(sampler, model.vocabulary.patch),
        TrainedCrops(sampler, population),
    ]


def _compared(rows: list[dict[str, Any]], kind: str, method: str) -> dict[str, Any]:
    """A method's success on one kind, and NNiT's less it, paired."""
    same = [row for row in rows if row["kind"] == kind]
    theirs = [row for row in same if row["source"] == method]
    ours = [row for row in same if row["source"] == "nnit"]
    pair = paired_rows(ours, theirs) if method != "nnit" else None
    return {"method": method, "kind": kind, **summarize(theirs), "nnit_less": pair}


def as_markdown(figures: dict[str, Any]) -> str:
    """The table, with what was measured, when and on what."""
    counts = ", ".join(
        f"{len(held)} of kind {kind}" for kind, held in figures["topologies"].items()
    )
    lines = [
        f"# Generalisation on {figures['task']}",
        "",
        f"`nnit bench generalization`, {figures['date']}, {figures['machine']}. Topologies that "
        f"training never saw: {counts}; {figures['samples']} samples of each, "
        f"{figures['episodes']} episodes a network, the same start states for every method, all "
        "samples counted. success_once in %, mean and 95% interval over topologies; NNiT less the "
        "method in points, paired by topology.",
        "",
        "| kind | method | success_once | NNiT less it |",
        "| --- | --- | --- | --- |",
    ]
    for row in figures["methods"]:
        once, low, high = (100 * row[key] for key in ("success_once", "low", "high"))
        pair = row["nnit_less"]
        less = "" if pair is None else _points(pair)
        method = ABOUT[row["method"]]
        lines.append(f"| {row['kind']} | {method} | {once:.1f} ({low:.1f}-{high:.1f}) | {less} |")
    return "\n".join(lines) + "\n"


def plot(figures: dict[str, Any]) -> Figure:
    """Every method's mean and interval, a panel a kind."""
    kinds = list(figures["topologies"])
    figure = Figure(figsize=(5 * len(kinds), 2.6))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        rows = [row for row in figures["methods"] if row["kind"] == kind][::-1]
        means = [100 * row["success_once"] for row in rows]
        spread = [
            [100 * (row["success_once"] - row["low"]) for row in rows],
            [100 * (row["high"] - row["success_once"]) for row in rows],
        ]
        colours = ["#0969da" if row["method"] == "nnit" else "#8c959f" for row in rows]
        axes.barh([ABOUT[row["method"]] for row in rows], means, xerr=spread, color=colours)
        axes.set_xlim(0, 100)
        axes.set_title(f"unseen {kind}", fontsize=10)
        axes.set_xlabel("success_once in %")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _points(pair: dict[str, float]) -> str:
    difference, low, high = (100 * pair[key] for key in ("difference", "low", "high"))
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
