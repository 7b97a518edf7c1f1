"""Measuring policies: every policy on the same start seeds, on the simulator pool."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnit_dist.envs.sim import TEST_SEED, task_info
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.pool import Failure, Job, SimulatorPool
from nnit_dist.evaluate.rollout import Episode
from nnit_dist.evaluate.stats import cluster_bootstrap, wilson
from nnit_dist.evaluate.store import EpisodeStore
from nnit_dist.policy import Policy
from nnit_dist.progress import StageProgress

EPISODES_A_CALL = 10


@dataclass
class Evaluation:
    """Episodes of every policy, and the policies that could not be measured, with the reason."""

    policies: list[Policy]
    episodes: dict[str, list[Episode]]
    failures: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """One row a policy: its success with a 95% Wilson interval."""
        return [self._row(policy) for policy in self.policies if policy.id in self.episodes]

    def _row(self, policy: Policy) -> dict[str, Any]:
        episodes = self.episodes[policy.id]
        once = sum(e.success_once for e in episodes)
        low, high = wilson(once, len(episodes))
        return {
            "policy_id": policy.id,
            "source": policy.source,
            "hidden": list(policy.topology.hidden),
            "episodes": len(episodes),
            "success_once": once / len(episodes),
            "success_once_low": low,
            "success_once_high": high,
            "success_at_end": float(np.mean([e.success_at_end for e in episodes])),
            "return": float(np.mean([e.episode_return for e in episodes])),
        }


def evaluate(
    policies: Sequence[Policy],
    episodes: int = 100,
    out: Path | None = None,
    actors: int | None = None,
    first_seed: int = TEST_SEED,
    title: str = "evaluate",
) -> Evaluation:
    """Roll every policy out for `episodes` episodes from the same fixed start states.

    Needs a running Ray. With `out`, episodes are stored there as Parquet and those already
    stored are not run again. Policies that make their simulator fail every time end in
    `failures`; the rest is measured all the same.

    Args:
        policies: policies of one task and control mode, ids all different.
        episodes: episodes a policy; the start seeds are `first_seed`, `first_seed` + 1, ...
        actors: simulator processes; all of Ray's CPUs by default.

    Raises:
        NnitError: no policies, no episodes, mixed tasks, doubled ids, wrong sizes or NaN.

    Example:
        >>> from nnit_dist.ray_session import ray_session
        >>> with ray_session():
        ...     result = evaluate(load_policies(Path("generated")), episodes=100)
        >>> result.rows()[0]["success_once"]
    """
    _check(policies, episodes)
    store = EpisodeStore(out / "episodes") if out else None
    known = store.load(policies) if store else {}
    seeds = range(first_seed, first_seed + episodes)
    jobs = _open_jobs(policies, seeds, known)
    failures = _measure(policies, jobs, known, store, actors, episodes, title) if jobs else {}
    measured = {
        policy.id: [known[policy.id, seed] for seed in seeds]
        for policy in policies
        if policy.id not in failures
    }
    return Evaluation(list(policies), measured, failures)


def _measure(
    policies: Sequence[Policy],
    jobs: list[Job],
    known: dict[tuple[str, int], Episode],
    store: EpisodeStore | None,
    actors: int | None,
    episodes: int,
    title: str,
) -> dict[str, str]:
    """Run the jobs into `known` and the store; returns the failures."""
    failures: dict[str, str] = {}
    total = len(policies) * episodes
    first = policies[0]
    with StageProgress("episodes") as view:
        done = total - sum(len(job.seeds) for job in jobs)
        view.add(title, total=total, completed=done)
        with SimulatorPool(first.task, first.control_mode, actors) as pool:
            successes = count = 0
            for outcome in pool.run(jobs):
                if isinstance(outcome, Failure):
                    failures[outcome.job.policy.id] = outcome.reason
                    continue
                fresh = outcome[1].episodes
                known.update({(e.policy_id, e.seed): e for e in fresh})
                if store:
                    store.add(outcome[0].policy, fresh)
                done, count = done + len(fresh), count + len(fresh)
                successes += sum(e.success_once for e in fresh)
                view.update(title, done, f"success {successes / count:.3f}")
    if store:
        store.flush()
    return failures


def _open_jobs(
    policies: Sequence[Policy], seeds: range, known: dict[tuple[str, int], Episode]
) -> list[Job]:
    jobs = []
    for policy in policies:
        missing = [seed for seed in seeds if (policy.id, seed) not in known]
        for start in range(0, len(missing), EPISODES_A_CALL):
            jobs.append(Job(policy, tuple(missing[start : start + EPISODES_A_CALL])))
    return jobs


def _check(policies: Sequence[Policy], episodes: int) -> None:
    if not policies:
        raise NnitError("there are no policies to evaluate.")
    if episodes < 1:
        raise NnitError(f"evaluate needs at least 1 episode a policy; got {episodes}.")
    tasks = {(policy.task, policy.control_mode) for policy in policies}
    if len(tasks) > 1:
        raise NnitError(f"policies of several tasks: {sorted(tasks)}. Evaluate one at a time.")
    ids = [policy.id for policy in policies]
    doubled = {policy_id for policy_id in ids if ids.count(policy_id) > 1}
    if doubled:
        raise NnitError(f"several policies carry the id {sorted(doubled)[0]!r}; ids key results.")
    info = task_info(*next(iter(tasks)))
    for policy in policies:
        policy.check_finite()
        sizes = (policy.topology.obs_dim, policy.topology.act_dim)
        if sizes != (info.obs_dim, info.act_dim):
            raise NnitError(
                f"policy {policy.id!r} maps {sizes[0]} observations to {sizes[1]} actions, but "
                f"{info.name} has {info.obs_dim} and {info.act_dim} ({info.control_mode})."
            )


def summarize(rows: list[dict[str, Any]]) -> dict[str, float]:
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
        "return": float(np.mean([row["return"] for row in rows])),
        "topologies": len(clusters),
        "networks": len(rows),
        "episodes": sum(row["episodes"] for row in rows),
    }
