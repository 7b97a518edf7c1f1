"""How diverse a population is: architectures, qualities, and behavior on a fixed set of states.

Shapes: M members, S states, A actions.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import spread
from nnit_dist.core.zoo import Member, best_of_trials
from nnit_dist.envs.sim import TRAIN_SEEDS, SimEnv
from nnit_dist.rollout.episodes import Part, run_part

STATE_EPISODES = 10  # of the best member; every second one is noised
NOISE = 0.3
MOST = 400  # members whose behavior is compared, evenly over training

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class PopulationStats:
    """Figures of one task's members, and what `picture` draws of them.

    Behavior is the mean absolute difference of actions, in [0, 2], on states that the best member
    visits, with and without noise.

    Attributes:
        members, trials, architectures, seeds: how many there are.
        env_steps: of all trials.
        success: its quartiles over members, from the least to the most.
        best_success: the mean over the best members of trials.
        between_trials: mean difference of actions between the best members of trials, if there
            are several.
        between_snapshots: mean difference of actions between the snapshots of one trial.
        widths: how many layers of trials have a width, by (hidden layers, width).
        compared: the C members whose behavior is compared.
        distances: differences of their actions [C, C].
    """

    members: int
    trials: int
    architectures: int
    seeds: int
    env_steps: int
    success: list[float]
    best_success: float
    between_trials: float | None
    between_snapshots: float | None
    widths: dict[tuple[int, int], int]
    compared: list[Member]
    distances: Matrix


def population_stats(members: list[Member]) -> PopulationStats:
    """Figures of one task's members."""
    best = best_of_trials(members)
    shapes = [member.policy.topology.hidden for member in best]
    widths = Counter((len(hidden), width) for hidden in shapes for width in hidden)
    chosen = spread(sorted(members, key=lambda m: (m.trial, m.env_steps)), MOST)
    states = _states(max(best, key=lambda m: (m.success_once, m.mean_return)).policy)
    distances = action_distances([m.policy for m in chosen], states)
    trials = np.array([m.trial for m in chosen])
    best_ids = {m.policy.id for m in best}
    is_best = np.array([m.policy.id in best_ids for m in chosen])
    other = ~np.eye(len(chosen), dtype=bool)
    same = trials[:, None] == trials[None]
    success = np.array([m.success_once for m in members])
    return PopulationStats(
        members=len(members),
        trials=len(best),
        architectures=len({m.policy.topology.hidden for m in members}),
        seeds=len({m.seed for m in members}),
        env_steps=sum(max(m.env_steps for m in members if m.trial == b.trial) for b in best),
        success=np.quantile(success, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        best_success=float(np.mean([m.success_once for m in best])),
        between_trials=_mean(distances[is_best[:, None] & is_best[None] & other]),
        between_snapshots=_mean(distances[same & other]),
        widths=dict(widths),
        compared=chosen,
        distances=distances,
    )


def action_distances(policies: list[Policy], states: np.ndarray) -> Matrix:
    """Mean absolute differences of actions over states [S, obs_dim], [M, M]."""
    actions = np.stack([policy.act(states).ravel() for policy in policies])
    return np.stack([np.abs(actions - row).mean(1) for row in actions]).astype(np.float64)


def map_in_two_dimensions(distances: Matrix) -> Matrix:
    """Points [M, 2] about as far apart as these distances (classical scaling, Torgerson 1952)."""
    count = len(distances)
    if count < 2:
        return np.zeros((count, 2))
    centering = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-0.5 * centering @ distances**2 @ centering)
    return vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))


def picture(task: str, stats: PopulationStats) -> Figure:
    """Which widths appear at which depth, how good members are, and how alike they act."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    cover, quality, behavior = figure.subplots(1, 3)
    _draw_widths(cover, stats.widths)
    cover.set_title(f"{task}: layers of {stats.trials} trials", fontsize=10)
    _draw_quality(quality, stats.compared)
    dots = _draw_behavior(behavior, stats)
    figure.colorbar(dots, ax=behavior, label="success once")
    for axes in (quality, behavior):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_widths(cover: Axes, counts_of: dict[tuple[int, int], int]) -> None:
    """How often each width appears at each depth."""
    depths, widths = (sorted({cell[axis] for cell in counts_of}) for axis in (0, 1))
    counts = np.array([[counts_of.get((depth, width), 0) for width in widths] for depth in depths])
    cover.imshow(
        np.ma.masked_equal(counts, 0), cmap="Blues", vmin=0, vmax=2 * counts.max(), aspect="auto"
    )
    for row, column in np.ndindex(*counts.shape):
        cover.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=9)
    cover.set_xticks(range(len(widths)), [str(width) for width in widths])
    cover.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    cover.set_xlabel("width of a layer")
    cover.set_ylabel("hidden layers")


def _lines(compared: list[Member]) -> list[list[int]]:
    """The positions of each trial's snapshots, a list a trial."""
    return [
        [i for i, member in enumerate(compared) if member.trial == trial]
        for trial in dict.fromkeys(member.trial for member in compared)
    ]


def _draw_dots(axes: Axes, points: Matrix, members: list[Member]) -> PathCollection:
    """A dot a member, at points [M, 2], colored by its success."""
    success = [member.success_once for member in members]
    x, y = points.T
    return axes.scatter(x, y, c=success, cmap="viridis", vmin=0, vmax=1, s=18, zorder=2)


def _draw_quality(quality: Axes, compared: list[Member]) -> None:
    """Success against env steps, a line a trial."""
    steps = [member.env_steps / 1e3 for member in compared]
    success = [member.success_once for member in compared]
    for line in _lines(compared):
        quality.plot([steps[i] for i in line], [success[i] for i in line], color="#8c959f", lw=0.7)
    _draw_dots(quality, np.column_stack([steps, success]), compared)
    quality.set_xlabel("thousand env steps")
    quality.set_ylabel("success once")
    quality.set_title("snapshots", fontsize=10)


def _draw_behavior(behavior: Axes, stats: PopulationStats) -> PathCollection:
    """Members as far apart as they act differently, a line a trial; returns the dots."""
    points = map_in_two_dimensions(stats.distances)
    for line in _lines(stats.compared):
        behavior.plot(*points[line].T, color="#8c959f", lw=0.7)
    dots = _draw_dots(behavior, points, stats.compared)
    behavior.set_aspect("equal", adjustable="datalim")
    behavior.set_title("how alike they act (difference of actions)", fontsize=10)
    return dots


def _states(policy: Policy) -> np.ndarray:
    """Observations [S, obs_dim] that a policy visits, from training seeds."""
    env = SimEnv(policy.task, policy.control_mode, reward=False)
    seeds = range(TRAIN_SEEDS - STATE_EPISODES, TRAIN_SEEDS)
    visited = []
    for noise, noise_seeds in ((0.0, seeds[::2]), (NOISE, seeds[1::2])):
        rollouts = run_part(env, Part(policy, tuple(noise_seeds), noise, record=True))
        assert rollouts.observations is not None
        visited.append(rollouts.observations.reshape(-1, env.info.obs_dim))
    env.close()
    return np.concatenate(visited)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
