"""How diverse a population is: architectures, qualities, and behaviour on a fixed set of states.

Shapes: M members, S states, A actions.
"""

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import spread
from nnit_dist.core.zoo import Member, best_of_trials
from nnit_dist.envs.sim import TRAIN_SEEDS, SimEnv
from nnit_dist.rollout.episodes import Part, run_part

STATE_EPISODES = 10  # of the best member; every second one is noised
NOISE = 0.3
MOST = 400  # members whose behaviour is compared, evenly over training

Matrix = NDArray[np.float64]


def population_stats(members: list[Member]) -> dict[str, Any]:
    """Figures of one task's members, and what `picture` draws of them.

    Behaviour: mean absolute difference of actions, in [0, 2], on states that the best member
    visits, with and without noise. Between the best members of trials, and between the
    snapshots of one trial.
    """
    best = best_of_trials(members)
    shapes = [member.policy.topology.hidden for member in best]
    widths = Counter((len(hidden), width) for hidden in shapes for width in hidden)
    chosen = spread(sorted(members, key=lambda m: (m.trial, m.env_steps)), MOST)
    states = _states(max(best, key=lambda m: (m.success_once, m.mean_return)).policy)
    distances = action_distances([m.policy for m in chosen], states)
    parents = np.array([m.trial for m in chosen])
    best_ids = {m.policy.id for m in best}
    is_best = np.array([m.policy.id in best_ids for m in chosen])
    other = ~np.eye(len(chosen), dtype=bool)
    same = parents[:, None] == parents[None]
    success = np.array([m.success_once for m in members])
    return {
        "members": len(members),
        "trials": len(best),
        "architectures": len({m.policy.topology.hidden for m in members}),
        "seeds": len({m.seed for m in members}),
        "env_steps": sum(max(m.env_steps for m in members if m.trial == b.trial) for b in best),
        "success": np.quantile(success, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "best_success": float(np.mean([m.success_once for m in best])),
        "between_trials": _mean(distances[is_best[:, None] & is_best[None] & other]),
        "between_snapshots": _mean(distances[same & other]),
        "widths": {f"{depth}/{width}": count for (depth, width), count in sorted(widths.items())},
        "compared": chosen,
        "distances": distances,
    }


def action_distances(policies: list[Policy], states: np.ndarray) -> Matrix:
    """Mean absolute differences of actions over states [S, obs_dim], [M, M]."""
    actions = np.stack([policy.act(states).ravel() for policy in policies])
    return np.stack([np.abs(actions - row).mean(1) for row in actions]).astype(np.float64)


def map_in_two_dimensions(distances: Matrix) -> Matrix:
    """Points [M, 2] about as far apart as these distances (classical scaling, Torgerson 1952)."""
    count = len(distances)
    if count < 2:
        return np.zeros((count, 2))
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    return vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))


def picture(task: str, stats: dict[str, Any]) -> Figure:
    """Which widths appear at which depth, how good members are, and how alike they act."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    cover, quality, behaviour = figure.subplots(1, 3)
    cells = {tuple(map(int, key.split("/"))): count for key, count in stats["widths"].items()}
    depths, widths = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    counts = np.array([[cells.get((depth, width), 0) for width in widths] for depth in depths])
    cover.imshow(
        np.ma.masked_equal(counts, 0), cmap="Blues", vmin=0, vmax=2 * counts.max(), aspect="auto"
    )
    for row, column in np.ndindex(*counts.shape):
        cover.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=9)
    cover.set_xticks(range(len(widths)), [str(width) for width in widths])
    cover.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    cover.set_xlabel("width of a layer")
    cover.set_ylabel("hidden layers")
    cover.set_title(f"{task}: layers of {stats['trials']} trials", fontsize=10)
    compared: list[Member] = stats["compared"]
    points = map_in_two_dimensions(stats["distances"])
    shades = [m.success_once for m in compared]
    for parent in dict.fromkeys(m.trial for m in compared):
        own = [i for i, m in enumerate(compared) if m.trial == parent]
        steps = [compared[i].env_steps / 1e3 for i in own]
        quality.plot(steps, [shades[i] for i in own], color="#8c959f", lw=0.7)
        behaviour.plot(*points[own].T, color="#8c959f", lw=0.7)
    steps = [m.env_steps / 1e3 for m in compared]
    quality.scatter(steps, shades, c=shades, cmap="viridis", vmin=0, vmax=1, s=18, zorder=2)
    quality.set_xlabel("thousand env steps")
    quality.set_ylabel("success once")
    quality.set_title("snapshots", fontsize=10)
    dots = behaviour.scatter(*points.T, c=shades, cmap="viridis", vmin=0, vmax=1, s=18, zorder=2)
    behaviour.set_aspect("equal", adjustable="datalim")
    behaviour.set_title("how alike they act (difference of actions)", fontsize=10)
    figure.colorbar(dots, ax=behaviour, label="success once")
    for axes in (quality, behaviour):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _states(policy: Policy) -> np.ndarray:
    """Observations [S, obs_dim] that a policy visits, from training seeds."""
    env = SimEnv(policy.task, policy.control_mode, reward=False)
    seeds = range(TRAIN_SEEDS - STATE_EPISODES, TRAIN_SEEDS)
    found = []
    for noise, own in ((0.0, seeds[::2]), (NOISE, seeds[1::2])):
        rollouts = run_part(env, Part(policy, tuple(own), noise, record=True))
        assert rollouts.observations is not None
        found.append(rollouts.observations.reshape(-1, env.info.obs_dim))
    env.close()
    return np.concatenate(found)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
