"""Two evaluations, compared."""

from pathlib import Path
from typing import Any

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.rollout.statistics import paired, paired_bootstrap
from nnit_dist.rollout.store import EpisodeStore
from nnit_dist.rollout.summaries import (
    _pair_up,
    paired_rows,
)


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
