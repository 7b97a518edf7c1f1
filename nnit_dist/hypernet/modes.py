"""Behavior modes: sets of teachers that can be averaged, measured pair by pair.

The average of two good policies may be bad: if one passes an object on the left and the other on
the right, their mean runs into it. A behavior mode is a maximal clique of teachers in which any two
can be averaged.
"""

import hashlib
import itertools
from functools import partial
from pathlib import Path

import networkx
import numpy as np

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.zoo import Member
from nnit_dist.rollout.evaluable import FunctionPolicy
from nnit_dist.rollout.evaluation import Evaluator


def measure_pairs(
    best: list[Member], episodes: int, out: Path, evaluator: Evaluator
) -> dict[tuple[int, int], float]:
    """Measure the drop in success_once when a pair of teachers is averaged, for all pairs i < j.

    The drop is the mean success_once of the two policies minus that of a policy that acts as their
    average, on the same start states. All episodes are written to `out`.

    Raises:
        NnitError: a simulator failed.
    """
    policies = [member.policy for member in best]
    pairs = list(itertools.combinations(range(len(policies)), 2))
    if not pairs:
        return {}
    averages = [average(policies[i], policies[j]) for i, j in pairs]
    result = evaluator.evaluate([*policies, *averages], episodes, out)
    if result.failures:
        raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
    success = [row["success_once"] for row in result.rows()]
    alone, averaged = success[: len(policies)], success[len(policies) :]
    return {
        (i, j): (alone[i] + alone[j]) / 2 - together
        for (i, j), together in zip(pairs, averaged, strict=True)
    }


def largest_behavior_mode(
    count: int, drops: dict[tuple[int, int], float], max_drop: float
) -> list[int]:
    """Indices of the largest behavior mode of `count` teachers; of equally large ones, the first.

    Two teachers can be averaged if their drop in success_once is at most `max_drop`.
    """
    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pair for pair, drop in drops.items() if drop <= max_drop)
    cliques = (sorted(clique) for clique in networkx.find_cliques(graph))
    return max(cliques, key=lambda clique: (len(clique), [-i for i in clique]))


def average(first: Policy, second: Policy) -> FunctionPolicy:
    """A policy whose action is the mean of the two policies' actions."""
    digest = hashlib.sha256((first.fingerprint() + second.fingerprint()).encode())
    return FunctionPolicy(
        partial(_mean_action, first, second),
        first.task,
        first.control_mode,
        f"average_{first.id}_{second.id}",
        source="average",
        version=digest.hexdigest()[:16],
        normalized=True,
    )


def _mean_action(first: Policy, second: Policy, obs: np.ndarray) -> np.ndarray:
    return (first.act(obs) + second.act(obs)) / 2
