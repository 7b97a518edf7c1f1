"""Behavior modes: which teachers can be averaged. Measured, pair by pair.

Two good policies may average to a bad one: where one passes an object on the left and the other on
the right, their mean runs into it. A behavior mode is a maximal clique of teachers any two of which
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
    """How much success averaging costs, for every pair (i, j) of the best, i < j.

    The mean of the two's success_once less that of a policy that acts as their average, over the
    same start states. Every episode is kept in `out`.

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
    """The largest behavior mode of `count` teachers; of several, the first.

    Two teachers can be averaged where that costs no more than `max_drop` success.
    """
    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pair for pair, drop in drops.items() if drop <= max_drop)
    cliques = (sorted(clique) for clique in networkx.find_cliques(graph))
    return max(cliques, key=lambda clique: (len(clique), [-i for i in clique]))


def average(first: Policy, second: Policy) -> FunctionPolicy:
    """A policy that acts as the two do on average."""
    digest = hashlib.sha256((first.fingerprint() + second.fingerprint()).encode())
    return FunctionPolicy(
        partial(_mean_action, first, second),
        first.task,
        first.control_mode,
        f"average_{first.id}_{second.id}",
        source="average",
        version=digest.hexdigest()[:16],
    )


def _mean_action(first: Policy, second: Policy, obs: np.ndarray) -> np.ndarray:
    return (first.act(obs) + second.act(obs)) / 2
