"""Success over many networks: means, intervals, and comparisons of methods."""

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from scipy.stats import spearmanr

from nnit_dist.core.formatting import count, percent, percent_interval, points_interval
from nnit_dist.core.splits import BEYOND, WITHIN
from nnit_dist.core.topology import Hidden
from nnit_dist.rollout.results import (
    STUDIES,
    MethodSummary,
    NetworkResult,
    PairedDifference,
    PolicyResult,
    Studies,
    StudyResult,
    Summary,
    TaskFigures,
    hidden_of,
)
from nnit_dist.rollout.statistics import cluster_bootstrap, paired_bootstrap

METHODS = {"rllib": "teachers", "ghn": "direct GHN query", "nnit": "NNiT"}
ALL_UNSEEN = "all unseen"  # within the sizes of training
KINDS = ("teacher", "seen", *WITHIN, ALL_UNSEEN, *BEYOND)

Key = TypeVar("Key", bound=Hashable)


def summarize(results: Sequence[PolicyResult]) -> Summary:
    """Mean success over all networks, with a 95% interval over topologies.

    For a single topology the interval is over its networks, for a single network over episodes.
    """
    clusters: dict[Hidden, list[float]] = {}
    for result in results:
        clusters.setdefault(hidden_of(result), []).append(result["success_once"])
    groups = list(clusters.values())
    if len(groups) == 1:
        groups = [[value] for value in groups[0]]
    if len(groups) == 1:
        low, high = results[0]["success_once_low"], results[0]["success_once_high"]
    else:
        low, high = cluster_bootstrap(groups)
    return {
        "success_once": float(np.mean([result["success_once"] for result in results])),
        "low": low,
        "high": high,
        "success_at_end": float(np.mean([result["success_at_end"] for result in results])),
        "topologies": len(clusters),
        "networks": len(results),
        "episodes": sum(result["episodes"] for result in results),
    }


def summarize_methods(results: Sequence[NetworkResult]) -> list[MethodSummary]:
    """One summary per method and kind of topology, and one over all unseen ones."""
    groups: dict[tuple[str, str], list[NetworkResult]] = {}
    for result in results:
        groups.setdefault((result["method"], result["kind"]), []).append(result)
        if result["kind"] in WITHIN:
            groups.setdefault((result["method"], ALL_UNSEEN), []).append(result)
    order = [(method, kind) for kind in KINDS for method in METHODS.values()]
    return [
        {"method": method, "kind": kind, **summarize(groups[method, kind])}
        for method, kind in order
        if (method, kind) in groups
    ]


def summarize_studies(results: Sequence[StudyResult]) -> Studies:
    """One summary per study and setting, and the rank correlation of requested success."""
    studies: Studies = {}
    for study in STUDIES:
        settings: dict[str, list[StudyResult]] = {}
        for result in results:
            if result["study"] == study:
                settings.setdefault(result["setting"], []).append(result)
        if settings:
            studies[study] = [
                {"setting": setting, **summarize(group)} for setting, group in settings.items()
            ]
    asked = [result for result in results if result["study"] == "asked"]
    if asked:
        wanted = [float(result["setting"]) for result in asked]
        measured = [result["success_once"] for result in asked]
        varies = len(set(measured)) > 1
        studies["rank_correlation"] = (
            float(spearmanr(wanted, measured).statistic) if varies else None
        )
    return studies


def paired_methods(results: Sequence[NetworkResult]) -> PairedDifference | None:
    """Success of NNiT less that of direct GHN queries, paired by unseen topology."""
    unseen = [result for result in results if result["kind"] in WITHIN]
    ours, theirs = (
        [result for result in unseen if result["method"] == METHODS[source]]
        for source in ("nnit", "ghn")
    )
    return paired_results(ours, theirs) if ours and theirs else None


def paired_results(
    ours: Sequence[PolicyResult], theirs: Sequence[PolicyResult]
) -> PairedDifference:
    """Difference of two methods' success over all samples of their common topologies."""
    our_groups, their_groups = pair_up(
        *(
            [(hidden_of(result), result["success_once"]) for result in side]
            for side in (ours, theirs)
        )
    )
    difference, low, high = paired_bootstrap(our_groups, their_groups)
    return {"difference": difference, "low": low, "high": high, "topologies": len(our_groups)}


def pair_up(
    ours: Iterable[tuple[Key, float]], theirs: Iterable[tuple[Key, float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Group the values of each side by key, for the keys that both have."""
    groups: dict[Key, tuple[list[float], list[float]]] = {}
    for side, values in enumerate((ours, theirs)):
        for key, value in values:
            groups.setdefault(key, ([], []))[side].append(value)
    shared = [group for group in groups.values() if all(group)]
    return [group[0] for group in shared], [group[1] for group in shared]


def success_interval(summary: Summary | None) -> str:
    """Success in percent with its 95% interval, as `96.5 (95.1-98.0)`; `-` without a summary."""
    if summary is None:
        return "-"
    return percent_interval(summary["success_once"], summary["low"], summary["high"])


def headline(figures: TaskFigures) -> str:
    """State a run's success in two sentences; empty if no unseen topology was measured."""
    by_kind = {(summary["method"], summary["kind"]): summary for summary in figures["summaries"]}
    unseen = by_kind.get((METHODS["nnit"], ALL_UNSEEN))
    if unseen is None:
        return ""
    teachers = by_kind.get((METHODS["rllib"], "teacher"))
    text = (
        f"Nobody trained these: {unseen['networks']} networks of {unseen['topologies']} topologies "
        f"that training never saw succeed in {percent(unseen['success_once'])}% of "
        f"{count(unseen['episodes'])} episodes"
    )
    text += f"; their teachers in {percent(teachers['success_once'])}%." if teachers else "."
    if pair := figures.get("paired"):
        difference = points_interval(pair["difference"], pair["low"], pair["high"])
        text += f" NNiT less the direct query, paired: {difference}."
    return text
