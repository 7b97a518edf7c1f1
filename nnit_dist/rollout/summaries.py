"""Success over many networks: means, intervals, and methods side by side."""

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from nnit_dist.core.splits import BEYOND, WITHIN
from nnit_dist.rollout.statistics import cluster_bootstrap, paired_bootstrap


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean success over all networks of `rows`, with a 95% interval over topologies.

    Of a single topology the interval is over its networks, of a single network over episodes.
    """
    clusters: dict[tuple, list[float]] = {}
    for row in rows:
        clusters.setdefault(tuple(row["hidden"]), []).append(row["success_once"])
    groups = list(clusters.values())
    if len(groups) == 1:
        groups = [[value] for value in groups[0]]
    if len(groups) == 1:
        low, high = rows[0]["success_once_low"], rows[0]["success_once_high"]
    else:
        low, high = cluster_bootstrap(groups)
    return {
        "success_once": float(np.mean([row["success_once"] for row in rows])),
        "low": low,
        "high": high,
        "success_at_end": float(np.mean([row["success_at_end"] for row in rows])),
        "topologies": len(clusters),
        "networks": len(rows),
        "episodes": sum(row["episodes"] for row in rows),
    }


METHODS = {"rllib": "teachers", "ghn": "direct GHN query", "nnit": "NNiT"}


ALL_UNSEEN = "all unseen"  # of the sizes of training


KINDS = ("teacher", "seen", *WITHIN, ALL_UNSEEN, *BEYOND)


def summarize_methods(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One summary per method and kind of topology, and one over all unseen ones."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["kind"]), []).append(row)
        if row["kind"] in WITHIN:
            groups.setdefault((row["method"], ALL_UNSEEN), []).append(row)
    places = [(method, kind) for kind in KINDS for method in METHODS.values()]
    return [
        {"method": method, "kind": kind, **summarize(groups[method, kind])}
        for method, kind in places
        if (method, kind) in groups
    ]


def summarize_studies(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A summary per study and setting; for the success asked for, its rank correlation as well."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row["study"], {}).setdefault(row["setting"], []).append(row)
    studies: dict[str, Any] = {
        study: [{"setting": setting, **summarize(group)} for setting, group in settings.items()]
        for study, settings in found.items()
    }
    asked = [row for row in rows if row["study"] == "asked"]
    if asked:
        wanted = [float(row["setting"]) for row in asked]
        got = [row["success_once"] for row in asked]
        varies = len(set(got)) > 1
        studies["rank_correlation"] = float(spearmanr(wanted, got).statistic) if varies else None
    return studies


def paired_methods(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """NNiT less the direct query, over the unseen topologies and start states of both."""
    unseen = [row for row in rows if row["kind"] in WITHIN]
    ours, theirs = (
        [row for row in unseen if row["method"] == METHODS[source]] for source in ("nnit", "ghn")
    )
    return paired_rows(ours, theirs) if ours and theirs else None


def paired_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Difference of two methods' success over the topologies that both have, all samples."""
    pairs = _pair_up(
        [(tuple(row["hidden"]), row["success_once"]) for row in ours],
        [(tuple(row["hidden"]), row["success_once"]) for row in theirs],
    )
    difference, low, high = paired_bootstrap(*pairs)
    return {"difference": difference, "low": low, "high": high, "topologies": len(pairs[0])}


def _pair_up(
    ours: list[tuple[Any, float]], theirs: list[tuple[Any, float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """The values of either side by key, for the keys that both have."""
    groups: dict[Any, tuple[list[float], list[float]]] = {}
    for side, values in enumerate((ours, theirs)):
        for key, value in values:
            groups.setdefault(key, ([], []))[side].append(value)
    both = [group for group in groups.values() if all(group)]
    return [group[0] for group in both], [group[1] for group in both]


def headline(figures: dict[str, Any]) -> str:
    """What a run comes to, in two sentences; empty where no unseen topology was measured."""
    summaries, pair = figures["summaries"], figures.get("paired")
    found = {(row["method"], row["kind"]): row for row in summaries}
    unseen = found.get((METHODS["nnit"], ALL_UNSEEN))
    if unseen is None:
        return ""
    text = (
        f"Nobody trained these: {unseen['networks']} networks of {unseen['topologies']} topologies "
        f"that training never saw succeed in {unseen['success_once']:.1%} of "
        f"{unseen['episodes']:,} episodes; their teachers in "
        f"{found[METHODS['rllib'], 'teacher']['success_once']:.1%}."
    )
    if pair:
        difference, low, high = (100 * pair[key] for key in ("difference", "low", "high"))
        text += (
            f" NNiT less the direct query, paired: {difference:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}]."
        )
    return text
