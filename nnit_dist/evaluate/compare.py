"""The evaluation stage: NNiT, the hypernetwork asked directly, and the teachers, side by side."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.artifacts import write_atomic, write_json
from nnit_dist.evaluate.run import evaluate, summarize
from nnit_dist.policy import Policy, load_policies
from nnit_dist.population.run import teachers
from nnit_dist.topology import UNSEEN_KINDS, Hidden, TopologySplit

METHODS = {"rllib": "teachers", "ghn": "direct GHN query", "nnit": "NNiT"}
ALL_UNSEEN = "all unseen"
KINDS = ("teacher", "seen", *UNSEEN_KINDS, ALL_UNSEEN)


def run_evaluation(
    generated: Path,
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
) -> dict[str, Any]:
    """Measure every method on the same start states; returns summaries.

    Reads policy files, the hypernetwork and the zoo. Writes `out/results.parquet` (one row a
    network), `out/results.json` (the summaries) and `out/episodes` (one row an episode).
    """
    taught = [m.policy for m in teachers(population) if m.success_once >= min_success]
    sampler = AlignedSampler.load(ghn)
    asked = [p for hidden in topologies for p in sampler.policies(hidden, samples, seed)]
    policies: list[Policy] = [*taught, *asked, *load_policies(generated)]
    result = evaluate(policies, episodes, out, actors)
    rows = result.rows()
    for row in rows:
        row["method"] = METHODS[row["source"]]
        row["kind"] = "teacher" if row["source"] == "rllib" else split.kind_of(tuple(row["hidden"]))
    table = pa.Table.from_pylist(rows)
    write_atomic(out / "results.parquet", lambda partial: pq.write_table(table, partial))
    summaries = summarize_methods(rows)
    write_json(out / "results.json", {"summaries": summaries, "failures": result.failures})
    return {"summaries": summaries, "failures": result.failures, "networks": len(rows)}


def summarize_methods(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One summary per method and kind of topology, and one over all unseen ones."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["kind"]), []).append(row)
        if row["kind"] in UNSEEN_KINDS:
            groups.setdefault((row["method"], ALL_UNSEEN), []).append(row)
    places = [(method, kind) for kind in KINDS for method in METHODS.values()]
    return [
        {"method": method, "kind": kind, **summarize(groups[method, kind])}
        for method, kind in places
        if (method, kind) in groups
    ]


def headline(summaries: list[dict[str, Any]]) -> str:
    """What a run comes to, in a sentence; empty where no unseen topology was measured."""
    found = {(row["method"], row["kind"]): row for row in summaries}
    unseen = found.get((METHODS["nnit"], ALL_UNSEEN))
    if unseen is None:
        return ""
    return (
        f"Nobody trained these: {unseen['networks']} networks of {unseen['topologies']} topologies "
        f"that training never saw succeed in {unseen['success_once']:.1%} of "
        f"{unseen['episodes']:,} episodes; their teachers in "
        f"{found[METHODS['rllib'], 'teacher']['success_once']:.1%}."
    )
