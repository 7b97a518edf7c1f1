"""Comparison of two stored evaluations."""

from dataclasses import dataclass
from pathlib import Path

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.formatting import difference_interval
from nnit_dist.core.topology import Hidden
from nnit_dist.rollout.results import PolicyResult, hidden_of
from nnit_dist.rollout.statistics import paired, paired_bootstrap
from nnit_dist.rollout.store import SUBJECT, EpisodeStore
from nnit_dist.rollout.summaries import pair_up, paired_results


@dataclass(frozen=True)
class _Stored:
    """A stored evaluation: its results, and (start seed, success_once) of each episode."""

    subject: dict[str, str]
    results: list[PolicyResult]
    episodes: list[tuple[int, bool]]

    @property
    def topologies(self) -> set[Hidden]:
        return {hidden_of(result) for result in self.results}

    @property
    def seeds(self) -> set[int]:
        return {seed for seed, _ in self.episodes}


def compare_evaluations(first: Path, second: Path) -> str:
    """Describe the difference in success_once of two directories of `nnit evaluate`.

    Results are paired by topology if the directories share several, and otherwise by start
    state. If each directory holds one policy, McNemar's exact test is added.

    Raises:
        NnitError: a directory holds no results, or they are of two tasks, control modes or robots,
            or share no start states.
    """
    a, b = _stored(first), _stored(second)
    for name in a.subject.keys() & b.subject.keys():
        if a.subject[name] != b.subject[name]:
            raise NnitError(
                f"{first} is of the {name.replace('_', ' ')} {a.subject[name]} and {second} of "
                f"{b.subject[name]}; nothing can be paired."
            )
    seeds = a.seeds & b.seeds
    if not seeds:
        raise NnitError(f"{first} and {second} share no start states; nothing can be paired.")
    if len(a.topologies & b.topologies) > 1:
        pair = paired_results(a.results, b.results)
        difference = difference_interval(pair["difference"], pair["low"], pair["high"])
        basis = f"{pair['topologies']} topologies"
    else:
        by_seed = pair_up(*([(s, float(once)) for s, once in side.episodes] for side in (a, b)))
        difference = difference_interval(*paired_bootstrap(*by_seed))
        basis = f"{len(seeds)} start states"
    text = f"success_once of {first} less that of {second}: {difference}, 95% interval over {basis}"
    if len(a.results) == len(b.results) == 1:
        text += _mcnemar(a, b)
    return text


def _mcnemar(a: _Stored, b: _Stored) -> str:
    """Say in a clause how many common start states only one of two policies solves."""
    success_a, success_b = dict(a.episodes), dict(b.episodes)
    seeds = sorted(a.seeds & b.seeds)
    result = paired([success_a[seed] for seed in seeds], [success_b[seed] for seed in seeds])
    return (
        f"; only the first solves {result.only_first}, only the second {result.only_second} "
        f"of {result.episodes} (McNemar p = {result.p_value:.3f})"
    )


def _stored(directory: Path) -> _Stored:
    file = directory / "results.json"
    stored = read_json(file)
    try:
        results: list[PolicyResult] = list(stored["policies"])
        for row in results:
            if not PolicyResult.__required_keys__ <= row.keys() or not hidden_of(row):
                raise KeyError(row)
        subject = {name: str(stored[name]) for name in SUBJECT if stored.get(name)}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NnitError(
            f"{file} does not hold results of `nnit evaluate`. Name a directory of its results, or "
            "run it again."
        ) from None
    if not results:
        raise NnitError(f"{directory} holds no measured policies; run `nnit evaluate` first.")
    table = EpisodeStore(directory / "episodes").table().sort_by("seed")
    names = ("policy_id", "fingerprint", "seed", "success_once")
    left = {(result["policy_id"], result["fingerprint"]): result["episodes"] for result in results}
    episodes = []
    for policy_id, weights, seed, once in zip(*(table[n].to_pylist() for n in names), strict=True):
        if left.get((policy_id, weights), 0):  # after an early stop, later episodes do not count
            left[policy_id, weights] -= 1
            episodes.append((seed, once))
    return _Stored(subject, results, episodes)
