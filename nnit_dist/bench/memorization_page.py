"""The figures of `nnit bench memorization`, as a Markdown page and a picture."""

from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from nnit_dist.bench.results import MeasuredHere
from nnit_dist.core.formatting import decimal, percent
from nnit_dist.core.topology import hidden_name

ABOUT = {
    "nnit": "NNiT",
    "fresh": "another of the same source",
    "teacher": "after one teacher alone",
    "noise": "a training network with noise",
    "average": "average of 16 training networks",
    "gaussian": "a Gaussian of every weight",
}


class KindFigures(TypedDict):
    """Means over the networks of one kind; None if there is nothing to compare with.

    Distances are to the nearest training network or (`_teacher`) the nearest network that imitates
    one teacher: in weights, relative to the mean norm of a training network; in actions, the mean
    absolute difference. `failure_overlap` is in [0, 1].
    """

    weight_distance: float | None
    weight_distance_teacher: float | None
    action_distance: float | None
    action_distance_teacher: float | None
    failure_overlap: float | None
    success_once: float


class MemorizationFigures(MeasuredHere):
    """What `nnit bench memorization` measures; `trained` counts training networks by topology."""

    task: str
    topologies: list[list[int]]
    trained: list[int]
    drawn: int
    teachers: int
    episodes: int
    kinds: dict[str, KindFigures]


def as_markdown(figures: MemorizationFigures) -> str:
    """The results as Markdown: how they were measured, and a table."""
    names = ", ".join(hidden_name(tuple(hidden)) for hidden in figures["topologies"])
    trained = ", ".join(map(str, figures["trained"]))
    lines = [
        f"# Memorization on {figures['task']}",
        "",
        f"`nnit bench memorization`, {figures['date']}, {figures['machine']}. Seen topologies "
        f"{names}; {figures['drawn']} networks of every kind of each ({figures['teachers']} after "
        f"one teacher alone), beside {trained} training networks; {figures['episodes']} episodes a "
        "network.",
        "",
        "| | weights, to training | weights, to a teacher's | actions, to training "
        "| actions, to a teacher's | failures | success_once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, row in figures["kinds"].items():
        cells = [
            decimal(row["weight_distance"], 3),
            decimal(row["weight_distance_teacher"], 3),
            decimal(row["action_distance"], 4),
            decimal(row["action_distance_teacher"], 4),
            decimal(row["failure_overlap"], 2),
            percent(row["success_once"]),
        ]
        lines.append(f"| {ABOUT[kind]} | {' | '.join(cells)} |")
    lines += [
        "",
        "Distance in weights to the nearest training network and to the nearest network after one "
        "teacher alone, in norms of a network; in actions, mean difference on fixed states. "
        "failures: largest overlap (intersection over union) of failed episodes with such a "
        "teacher's network. A copy would have distances of 0 and, where it fails, an overlap of 1; "
        "what is as new as its source has the figures of the second row; teachers differ from one "
        "another by those of the third.",
    ]
    return "\n".join(lines) + "\n"


def plot(measured: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Success of every network against its distance from training and teacher networks."""
    figure = Figure(figsize=(11, 3.2))
    panels = figure.subplots(1, 3, sharey=True)
    labels = {
        "weight_distance": "weights: from the nearest of training",
        "weight_distance_teacher": "weights: from the nearest teacher's",
        "action_distance_teacher": "actions: from the nearest teacher's",
    }
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for kind, values in measured.items():
            size, zorder = (16, 3) if kind == "nnit" else (10, 2)
            axes.scatter(
                values[name],
                values["success_once"],
                s=size,
                alpha=0.6,
                lw=0,
                zorder=zorder,
                label=ABOUT[kind],
            )
        axes.set_xlabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("success_once")
    panels[2].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(1, 0.2))
    return figure
