"""The pictures of the report."""

from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.splits import UNSEEN_KINDS
from nnit_dist.core.topology import Hidden
from nnit_dist.rollout.results import NetworkResult, Studies, StudySummary, hidden_of
from nnit_dist.training.state import read_metrics

if TYPE_CHECKING:
    from nnit_dist.population.train import TrialFigures

COLORS = {"NNiT": "#0969da", "direct GHN query": "#bf8700", "teachers": "#57606a"}


def success_by_topology(rows: list[NetworkResult]) -> Figure:
    """Success on each topology (mean over samples), one dot per method, by kind of topology."""
    kinds = [kind for kind in ("seen", *UNSEEN_KINDS) if any(row["kind"] == kind for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 3.6))
    teachers = [row["success_once"] for row in rows if row["kind"] == "teacher"]
    axes.axhline(
        float(np.mean(teachers)), color=COLORS["teachers"], ls="--", lw=1, label="teachers' mean"
    )
    rng = np.random.default_rng(0)
    for offset, method in ((-0.18, "direct GHN query"), (0.18, "NNiT")):
        for place, kind in enumerate(kinds):
            groups: dict[Hidden, list[float]] = {}
            for row in rows:
                if row["kind"] == kind and row["method"] == method:
                    groups.setdefault(hidden_of(row), []).append(row["success_once"])
            means = [float(np.mean(values)) for values in groups.values()]
            x = place + offset + rng.uniform(-0.09, 0.09, len(means))
            label = method if place == 0 else None
            axes.scatter(x, means, s=22, alpha=0.7, color=COLORS[method], label=label, lw=0)
            axes.plot(
                [place + offset - 0.13, place + offset + 0.13],
                [np.mean(means)] * 2,
                color=COLORS[method],
                lw=2.5,
            )
    axes.set_xticks(range(len(kinds)), [k if k == "seen" else f"unseen: {k}" for k in kinds])
    axes.set_ylabel("success once")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(loc="lower left", frameon=False)
    return _finish(figure)


def sampler_studies(studies: Studies) -> Figure:
    """Success against sampler steps, and measured success against the success asked for."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    _draw_study(left, studies["steps"], "sampler steps")
    _draw_study(right, studies["asked"], "success asked for")
    left.set_xscale("log", base=2)
    left.set_xticks(
        [float(row["setting"]) for row in studies["steps"]],
        [row["setting"] for row in studies["steps"]],
    )
    right.plot([0, 1], [0, 1], color="#57606a", lw=1, ls="--")
    if studies["rank_correlation"] is not None:
        right.set_title(f"rank correlation {studies['rank_correlation']:.2f}", fontsize=10)
    return _finish(figure)


def _draw_study(axes: Axes, summaries: list[StudySummary], label: str) -> None:
    """Mean success and its interval against the setting."""
    rows = sorted(summaries, key=lambda row: float(row["setting"]))
    x = [float(row["setting"]) for row in rows]
    means = np.array([row["success_once"] for row in rows])
    low, high = np.array([row["low"] for row in rows]), np.array([row["high"] for row in rows])
    spread = np.maximum([means - low, high - means], 0)  # rounding can make it negative
    axes.errorbar(x, means, spread, color=COLORS["NNiT"], marker="o", ms=4, capsize=3)
    axes.set_xlabel(label)
    axes.set_ylabel("success once")


def population_curves(run: RunDirectory) -> Figure:
    """Deterministic success of every trial against env steps, one panel per task."""
    trials: dict[str, TrialFigures] = run.figures("population")["trials"]
    tasks = run.tasks()
    figure, panels = plt.subplots(len(tasks), figsize=(9, 3 * len(tasks)), squeeze=False)
    for task, axes in zip(tasks, panels[:, 0], strict=True):
        for name, trial in trials.items():
            trained_on, label = name.split("_", 1)
            if trained_on == task:
                steps = [h["env_steps"] / 1e3 for h in trial["history"]]
                success = [h["success_once"] for h in trial["history"]]
                axes.plot(steps, success, marker="o", ms=3, label=label)
        axes.set_xlabel("thousand env steps")
        axes.set_ylabel("success once")
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(f"population, {task}: deterministic success", fontsize=10)
        axes.legend(frameon=False, fontsize=8, ncols=2)
    return _finish(figure)


def training_curves(run: RunDirectory) -> Figure:
    """Losses of the alignment and of NNiT against steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
    for axes, metrics, name, title in (
        (left, run.align.metrics, "action_mse", "alignment: action MSE"),
        (right, run.train.metrics, "flow", "NNiT: flow-matching loss"),
    ):
        rows = read_metrics(metrics)
        axes.semilogy([row["step"] for row in rows], [row[name] for row in rows], lw=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
    return _finish(figure)


def weight_matrices(run: RunDirectory, task: str) -> Figure:
    """The second layer of two teachers, of two aligned networks and of two NNiT samples."""
    from nnit_dist.hypernet.model import HypernetModel
    from nnit_dist.nnit.model import NNiTModel

    sampler = HypernetModel.load(run.hypernet(), task)
    model = NNiTModel.load(run.nnit()).for_task(task)
    raw = [member.policy for member in run.teachers(task)]
    raw = [policy for policy in raw if policy.topology.depth > 1] or raw
    width = max(max(hidden) for hidden in run.split().seen)
    narrow = sorted({w for hidden in run.split().seen for w in hidden})[-2]
    shapes = [(width, width), (narrow, narrow)]
    columns = [
        ("teacher (raw RL)", [raw[0], raw[-1]]),
        ("aligned (GHN)", [sampler.policies(shape, 1, 0)[0] for shape in shapes]),
        ("written by NNiT", [model.generate(shape, 1)[0] for shape in shapes]),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(9, 6))
    for column, (title, policies) in enumerate(columns):
        for row, policy in enumerate(policies):
            show_matrix(axes[row, column], policy.layers[1][0], f"{title}, {policy.topology.name}")
    return _finish(figure)


def show_matrix(axes: Axes, weight: np.ndarray, title: str) -> None:
    """Draw a weight matrix [out, in]; colors saturate at the 99% quantile of magnitudes."""
    limit = np.quantile(np.abs(weight), 0.99)
    axes.imshow(weight, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _finish(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
