"""Which teachers may be mixed: measured, pair by pair.

Two good policies may average to a bad one: where one passes an object on the left and the other on
the right, their mean runs into it. Those that teach together do the task in one way.
"""

import hashlib
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import networkx
import numpy as np

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.task import SimBackend
from nnit_dist.core.zoo import Member
from nnit_dist.envs.sim import VALIDATION_SEED
from nnit_dist.rollout.evaluable import FunctionPolicy
from nnit_dist.rollout.evaluation import Evaluator


def measure_pairs(
    best: list[Member],
    episodes: int,
    out: Path,
    actors: int | None,
    sim_backend: SimBackend,
) -> dict[tuple[int, int], float]:
    """What acting as two of the best do on average costs, for every pair (i, j), i < j.

    The mean of the two's success_once less that of their average, over the same start states of
    validation. Every episode is kept in `out`.

    Raises:
        NnitError: a simulator failed.
    """
    policies = [member.policy for member in best]
    pairs = list(itertools.combinations(range(len(policies)), 2))
    if not pairs:
        return {}
    evaluables = [*policies, *(average(policies[i], policies[j]) for i, j in pairs)]
    task = policies[0].task
    title = f"{task}, averages of two teachers"
    evaluator = Evaluator(actors, sim_backend, VALIDATION_SEED, title)
    result = evaluator.evaluate(evaluables, episodes, out)
    if result.failures:
        raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
    success = [row["success_once"] for row in result.rows()]
    alone, averaged = success[: len(policies)], success[len(policies) :]
    return {
        (i, j): (alone[i] + alone[j]) / 2 - both
        for (i, j), both in zip(pairs, averaged, strict=True)
    }


def largest_behavior_mode(count: int, lost: dict[tuple[int, int], float], most: float) -> list[int]:
    """The largest company of `count` teachers any two of which can be mixed; of several, the first.

    Two can be where acting as they do on average costs no more than `most` success.
    """
    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pair for pair, cost in lost.items() if cost <= most)
    cliques = (sorted(clique) for clique in networkx.find_cliques(graph))
    return max(cliques, key=lambda clique: (len(clique), [-i for i in clique]))


def average(one: Policy, other: Policy) -> FunctionPolicy:
    """Acts as the two do on average."""
    digest = hashlib.sha256((one.fingerprint() + other.fingerprint()).encode())
    return FunctionPolicy(
        partial(_mean_action, one, other),
        one.task,
        one.control_mode,
        f"average_{one.id}_{other.id}",
        source="average",
        version=digest.hexdigest()[:16],
    )


def _mean_action(one: Policy, other: Policy, obs: np.ndarray) -> Any:
    return (one.act(obs) + other.act(obs)) / 2
