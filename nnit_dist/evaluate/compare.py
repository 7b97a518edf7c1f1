"""The evaluation stage: NNiT, the hypernetwork asked directly, and the teachers, side by side."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.artifacts import read_json, write_atomic, write_json
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.run import evaluate, summarize
from nnit_dist.evaluate.simulator import SimBackend
from nnit_dist.evaluate.stats import paired, paired_bootstrap
from nnit_dist.evaluate.store import EpisodeStore
from nnit_dist.policy import load_policies
from nnit_dist.population.run import teachers
from nnit_dist.topology import BEYOND, WITHIN, Hidden, TopologySplit

METHODS = {"rllib": "teachers", "ghn": "direct GHN query", "nnit": "NNiT"}
ALL_UNSEEN = "all unseen"  # of the sizes of training
KINDS = ("teacher", "seen", *WITHIN, ALL_UNSEEN, *BEYOND)


def run_evaluation(
    tasks: list[str],
    generated: Path,
    studies: Path | None,
    ghn: Path,
    population: Path,
    split: TopologySplit,
    topologies: list[Hidden],
    samples: int,
    episodes: int,
    min_success: float,
    seed: int,
    out: Path,
    actors: int | None,
    sim_backend: SimBackend,
) -> dict[str, Any]:
    """Measure every method on the same start states, task by task; returns summaries.

    Reads policy files (and those of the studies, if any) below a directory a task, the hypernetwork
    and the zoo. Writes `out/results.parquet` (one row a network), `out/results.json` (the
    summaries by task) and `out/TASK/episodes` (one row an episode).
    """
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task in tasks:
        taught = [m.policy for m in teachers(population, task) if m.success_once >= min_success]
        sampler = AlignedSampler.load(ghn, task)
        written = filter(sampler.writes, topologies)
        asked = [p for hidden in written for p in sampler.policies(hidden, samples, seed)]
        studied = load_policies(studies / task) if studies else []
        policies = [*taught, *asked, *load_policies(generated / task), *studied]
        result = evaluate(
            policies, episodes, out / task, actors, sim_backend=sim_backend, title=task
        )
        about = {policy.id: policy.metadata for policy in studied}
        measured = result.rows()
        own = [{"task": task, **row} for row in measured if row["policy_id"] not in about]
        for row in own:
            row["method"] = METHODS[row["source"]]
            is_teacher = row["source"] == "rllib"
            row["kind"] = "teacher" if is_teacher else split.kind_of(tuple(row["hidden"]))
        rows += own
        found[task] = {
            "summaries": summarize_methods(own),
            "failures": result.failures,
            "paired": paired_methods(own),
            "studies": summarize_studies(
                [row | about[row["policy_id"]] for row in measured if row["policy_id"] in about]
            ),
        }
    table = pa.Table.from_pylist(rows)
    write_atomic(out / "results.parquet", lambda partial: pq.write_table(table, partial))
    write_json(out / "results.json", {"tasks": found})
    return {"tasks": found, "networks": len(rows)}


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


def compare_evaluations(first: Path, second: Path) -> str:
    """What two directories of `nnit evaluate` say about each other, in a sentence.

    Paired by topology where they share several, else by start state; for two single policies
    with McNemar's exact test.

    Raises:
        NnitError: a directory holds no results, or they share no start states.
    """
    sides = [_stored(directory) for directory in (first, second)]
    (rows_a, episodes_a), (rows_b, episodes_b) = sides
    hidden = [{tuple(row["hidden"]) for row in rows} for rows, _ in sides]
    seeds = {seed for _, seed, _ in episodes_a} & {seed for _, seed, _ in episodes_b}
    if not seeds:
        raise NnitError(f"{first} and {second} share no start states; nothing can be paired.")
    by_topology = len(hidden[0] & hidden[1]) > 1
    if by_topology:
        found = paired_rows(rows_a, rows_b)
        difference, low, high = (found[key] for key in ("difference", "low", "high"))
        basis = f"{found['topologies']} topologies"
    else:
        pairs = _pair_up(*([(s, float(o)) for _, s, o in e] for e in (episodes_a, episodes_b)))
        difference, low, high = paired_bootstrap(*pairs)
        basis = f"{len(seeds)} start states"
    text = (
        f"success_once of {first} less that of {second}: {difference:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], 95% interval over {basis}"
    )
    if len(rows_a) == len(rows_b) == 1:
        flags = ({s: o for _, s, o in e if s in seeds} for e in (episodes_a, episodes_b))
        result = paired(*([once[seed] for seed in sorted(seeds)] for once in flags))
        text += (
            f"; only the first solves {result.only_first}, only the second {result.only_second} "
            f"of {result.episodes} (McNemar p = {result.p_value:.3f})"
        )
    return text


def _stored(directory: Path) -> tuple[list[dict[str, Any]], list[tuple[str, int, bool]]]:
    """Rows of an evaluation and its episodes (policy, start seed, success_once)."""
    rows = read_json(directory / "results.json").get("policies")
    if not rows:
        raise NnitError(f"{directory} holds no measured policies; run `nnit evaluate` first.")
    table = EpisodeStore(directory / "episodes").table().sort_by("seed")
    names = ("policy_id", "fingerprint", "seed", "success_once")
    left = {(row["policy_id"], row["fingerprint"]): row["episodes"] for row in rows}
    episodes = []
    for policy_id, weights, seed, once in zip(*(table[n].to_pylist() for n in names), strict=True):
        if left.get((policy_id, weights), 0):  # where it was stopped early, those that count
            left[policy_id, weights] -= 1
            episodes.append((policy_id, seed, once))
    return rows, episodes


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
