"""Final test of a search: its best trial and the defaults on held-out topologies."""

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import write_atomic
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import spread
from nnit_dist.core.topology import Hidden
from nnit_dist.envs.sim import TEST_SEED
from nnit_dist.report.film import Clip, film
from nnit_dist.report.plots import show_matrix
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.statistics import cluster_bootstrap, paired_bootstrap
from nnit_dist.search.records import FinalFigures, GroupName

SAMPLES, EPISODES, SHOWN = 2, 100, 6


def measure(
    policies: dict[GroupName, list[Policy]], out: Path, evaluator: Evaluator
) -> FinalFigures:
    """Mean success_once of each group from test start states, and the difference of the groups.

    Every episode is kept in `out`. Ids of the policies get the name of their group as a prefix.

    Raises:
        NnitError: a network could not be measured.
    """
    for name, group in policies.items():
        for policy in group:
            policy.id = f"{name}_{policy.id}"
    networks = [policy for group in policies.values() for policy in group]
    result = evaluator.evaluate(networks, EPISODES, out)
    if result.failures:
        raise NnitError(f"measuring failed: {next(iter(result.failures.values()))}.")
    success = {row["policy_id"]: row["success_once"] for row in result.rows()}
    by_topology = {name: _by_topology(group, success) for name, group in policies.items()}
    return compare(by_topology)


def compare(success: dict[GroupName, dict[Hidden, list[float]]]) -> FinalFigures:
    """Mean success_once of each group, and the difference of two groups of the same topologies.

    `success` has the success_once of each network, by group and topology.
    """
    figures: FinalFigures = {}
    for name, groups in success.items():
        values = list(groups.values())
        low, high = cluster_bootstrap(values)
        mean = sum(map(sum, values)) / sum(map(len, values))
        figures[name] = {"success": mean, "low": low, "high": high}
    if len(success) == 2:
        first, second = success.values()
        if first.keys() == second.keys():  # else they are populations of other architectures
            pairs = list(first.values()), [second[hidden] for hidden in first]
            difference, low, high = paired_bootstrap(*pairs)
            figures["difference"] = {"mean": difference, "low": low, "high": high}
    return figures


def _by_topology(policies: list[Policy], success: dict[str, float]) -> dict[Hidden, list[float]]:
    groups: dict[Hidden, list[float]] = {}
    for policy in policies:
        groups.setdefault(policy.topology.hidden, []).append(success[policy.id])
    return groups


def show(policies: list[Policy], out: Path) -> None:
    """Write a film of some networks at work, and a picture of their matrices, to `out`."""
    shown = spread(policies, SHOWN)
    clips = [Clip(p, TEST_SEED + i, p.topology.name) for i, p in enumerate(shown)]
    film(clips, out / "policies.mp4")
    figure, axes = plt.subplots(2, SHOWN // 2, figsize=(9, 6), squeeze=False)
    for place in axes.flat[len(shown) :]:
        place.axis("off")
    for place, policy in zip(axes.flat, shown, strict=False):
        middle = policy.layers[len(policy.layers) // 2][0]
        show_matrix(place, middle, policy.topology.name)
    figure.tight_layout()
    save = partial(figure.savefig, dpi=110, format="png")
    write_atomic(out / "weights.png", save)
    plt.close(figure)
