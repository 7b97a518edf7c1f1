"""`nnit bench memorization`: are NNiT's networks new, or copies of what it was trained on?

These are the tests of Zeng et al. (arXiv 2506.07998), on seen topologies. They measure how far a
network is from the nearest training network and from the nearest teacher's network, in its weights
and in its actions. For comparison, they measure new networks of the hypernetwork, which training
did not draw, and networks that are made by trivial means: noise, averages, a Gaussian of every
weight. Training networks are those of the training's draws that imitate best teachers, written
again with exactly these widths, as training varied the widths.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.baselines.crops import policies_of
from nnit_dist.bench.memorization_page import (
    ABOUT,
    KindFigures,
    MemorizationFigures,
    as_markdown,
    plot,
)
from nnit_dist.bench.results import measured_here, write_results
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import stream
from nnit_dist.core.splits import spread
from nnit_dist.core.topology import Hidden, Topology, hidden_name
from nnit_dist.envs.sim import TRAIN_SEEDS, SimEnv
from nnit_dist.hypernet.data import actions_of
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.dataset import AlignedDataset, Drawn, batch_of
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import training_of
from nnit_dist.rollout.episodes import Part, run_part
from nnit_dist.rollout.evaluation import Evaluation, Evaluator

AVERAGED = 16
NOISE = 0.1  # of the rms of each layer's weights
STATE_EPISODES = 10
WRITTEN = 64  # networks at once


@dataclass(frozen=True)
class Counts:
    """Most training networks of a topology, networks of a topology and kind, episodes a network."""

    trained: int
    drawn: int
    episodes: int


def bench_memorization(
    run: RunDirectory,
    task: str,
    topologies: list[Hidden],
    counts: Counts,
    *,
    out: Path,
    actors: int | None = None,
) -> MemorizationFigures:
    """Compare networks of every kind with training networks, and return the figures.

    Reads one task of a finished run directory. Writes `out/memorization.json`, `.md`, `.png`, and
    every episode (`out/episodes`).

    Raises:
        NnitError: a topology was not trained on.
    """
    model = NNiTModel.load(run.nnit()).for_task(task)
    sampler = HypernetModel.load(run.hypernet(), task)
    states = record_states(sampler)
    if strange := [hidden for hidden in topologies if hidden not in sampler.distribution.seen]:
        raise NnitError(
            f"{hidden_name(strange[0])} was not trained on. Seen topologies of {run} are "
            f"{', '.join(map(hidden_name, spread(sampler.distribution.seen, 8)))}, ..."
        )
    groups = _groups(run, sampler, model, topologies, counts=counts)
    policies = [policy for group in groups for policy in group.policies()]
    result = Evaluator(actors, title="memorization").evaluate(policies, counts.episodes, out)
    measured = {kind: _joined([g.measure(kind, states, result) for g in groups]) for kind in ABOUT}
    figures: MemorizationFigures = {
        "task": sampler.task.name,
        **measured_here(),
        "topologies": [list(hidden) for hidden in topologies],
        "trained": [len(group.train) for group in groups],
        "drawn": counts.drawn,
        "teachers": len(sampler.current.best),
        "episodes": counts.episodes,
        "kinds": {kind: _means(values) for kind, values in measured.items()},
    }
    text, picture = as_markdown(figures), plot(measured)
    write_results(out, "memorization", figures, text=text, plot=picture)
    return figures


def record_states(sampler: HypernetModel) -> Tensor:
    """Normalized observations [S, obs_dim] that a generated network visits from training seeds."""
    env = SimEnv(sampler.task.name, sampler.task.control_mode, reward=False)
    policy = sampler.policies(sampler.distribution.seen[-1], 1, 0)[0]
    seeds = tuple(range(TRAIN_SEEDS - STATE_EPISODES, TRAIN_SEEDS))
    rollouts = run_part(env, Part(policy, seeds, record=True))
    env.close()
    assert rollouts.observations is not None
    visited = rollouts.observations.reshape(-1, sampler.task.obs_dim)
    return torch.from_numpy(sampler.current.normalizer.apply(visited))


def _groups(
    run: RunDirectory,
    sampler: HypernetModel,
    model: NNiTModel,
    topologies: list[Hidden],
    *,
    counts: Counts,
) -> list["_Group"]:
    config, seed = training_of(run)
    exact, task = replace(sampler.distribution, variation=0), sampler.number
    source = AlignedDataset(replace(sampler, distribution=exact), config, seed)
    batches = 1 + max(batch_of(step, 0, config.reuse) for step in range(config.steps))
    train = _networks(source, task, topologies, range(batches), count=counts.trained)
    fresh = _networks(source, task, topologies, range(batches, 10 * batches), count=counts.drawn)
    return [
        _Group(sampler, model, h, train[h], fresh=fresh[h], drawn=counts.drawn) for h in topologies
    ]


def _networks(
    source: AlignedDataset, task: int, topologies: list[Hidden], batches: range, *, count: int
) -> dict[Hidden, MLPBatch]:
    """Networks in these batches that imitate best teachers of a task, up to `count` a topology."""
    config, best = source.config, source.model.tasks[task].best
    by_topology: dict[Hidden, list[Drawn]] = {hidden: [] for hidden in topologies}
    for batch in batches:
        for network in source.drawn(
            batch, range(config.topologies_per_step * config.networks_per_topology)
        ):
            networks = by_topology.get(network.seen) if network.task == task else None
            if networks is None or len(networks) == count:
                continue
            if network.teacher_weights[best].any():
                networks.append(network)
        if all(len(networks) == count for networks in by_topology.values()):
            break
    return {
        hidden: MLPBatch.cat(
            [source.write(networks[i : i + WRITTEN]) for i in range(0, len(networks), WRITTEN)]
        )
        for hidden, networks in by_topology.items()
    }


class _Group:
    """Networks of one topology: of the training, of single teachers, and of every kind compared."""

    def __init__(
        self,
        sampler: HypernetModel,
        model: NNiTModel,
        hidden: Hidden,
        train: MLPBatch,
        *,
        fresh: MLPBatch,
        drawn: int,
    ) -> None:
        self.sampler, self.topology, self.train = sampler, sampler.topology(hidden), train
        self.teachers = self._after_one_teacher()
        self.kinds = {
            "nnit": MLPBatch.from_policies(
                model.generate(hidden, drawn, 1), sampler.current.normalizer
            ),
            "fresh": fresh,
            "teacher": self.teachers,
            "noise": self._noised(drawn),
            "average": self._averaged(drawn),
            "gaussian": self._gaussian(drawn),
        }

    def policies(self) -> list[Policy]:
        return [
            policy
            for kind, networks in self.kinds.items()
            for policy in policies_of(self.sampler, kind, [networks], 0)
        ]

    def measure(self, kind: str, states: Tensor, result: Evaluation) -> dict[str, np.ndarray]:
        """Distances of a kind's networks to training networks and teachers, and their success."""
        networks, failed = self.kinds[kind], self._failed(result, kind)
        # A teacher's network is compared with those of other teachers, not with itself.
        least = _least_of_others if kind == "teacher" else _least
        scale = float(_flat(self.train, self.topology).norm(dim=1).mean())
        apart = lambda known: _distances(networks, known, self.topology) / scale  # noqa: E731
        act_apart = lambda known: _action_distances(networks, known, states)  # noqa: E731
        return {
            "weight_distance": _least(apart(self.train)),
            "weight_distance_teacher": least(apart(self.teachers)),
            "action_distance": _least(act_apart(self.train)),
            "action_distance_teacher": least(act_apart(self.teachers)),
            "failure_overlap": -least(-_overlaps(failed, self._failed(result, "teacher"))),
            "success_once": 1 - failed.mean(1),
        }

    def _failed(self, result: Evaluation, kind: str) -> np.ndarray:
        """Whether each network failed in each episode: bool [networks, episodes]."""
        name, count = self.topology.name, len(self.kinds[kind])
        return np.array([~result.success(f"{kind}_{name}_0_{i}") for i in range(count)])

    def _after_one_teacher(self) -> MLPBatch:
        """One network for each of the best teachers, which imitates it alone."""
        best = self.sampler.current.best
        teacher_weights = torch.stack([self.sampler.single_teacher(teacher) for teacher in best])
        rngs = [stream("memorization.networks", teacher) for teacher in best]
        return self.sampler.networks([self.topology] * len(best), teacher_weights, rngs)

    def _noised(self, count: int) -> MLPBatch:
        streams = [stream("memorization.noised", i) for i in range(count)]
        noises = [MLPBatch.randn(self.topology, 1, rng) for rng in streams]
        networks = self.train.select([i % len(self.train) for i in range(count)])
        return networks.add_noise(NOISE, MLPBatch.cat(noises))

    def _averaged(self, count: int) -> MLPBatch:
        flat, means = _flat(self.train, self.topology), []
        for number in range(count):
            rng = stream("memorization.averaged", number)
            picked = torch.randperm(len(flat), generator=rng)[:AVERAGED]
            means.append(flat[picked].mean(0))
        return _unflat(torch.stack(means), self.topology)

    def _gaussian(self, count: int) -> MLPBatch:
        flat = _flat(self.train, self.topology)
        mean, std = flat.mean(0), flat.std(0)
        streams = [stream("memorization.gaussian", i) for i in range(count)]
        noises = [torch.randn(mean.shape, generator=rng) for rng in streams]
        return _unflat(mean + std * torch.stack(noises), self.topology)


def _flat(networks: MLPBatch, topology: Topology) -> Tensor:
    """[K, parameters]: weights in units of 1/sqrt(fan_in), as NNiT sees them, and biases."""
    parts = []
    for weight, bias, (out, fan_in) in zip(
        networks.weights, networks.biases, topology.shapes, strict=True
    ):
        parts += [(weight[:, :out, :fan_in] * fan_in**0.5).flatten(1), bias[:, :out]]
    return torch.cat(parts, 1)


def _unflat(values: Tensor, topology: Topology) -> MLPBatch:
    """Inverse of `_flat`."""
    sizes = [size for out, fan_in in topology.shapes for size in (out * fan_in, out)]
    parts = values.split(sizes, 1)
    weights = [
        part.unflatten(1, shape) / shape[1] ** 0.5
        for part, shape in zip(parts[::2], topology.shapes, strict=True)
    ]
    return MLPBatch.of_topology(topology, weights, parts[1::2])


def _distances(networks: MLPBatch, others: MLPBatch, topology: Topology) -> np.ndarray:
    """Euclidean distances between the weights of networks and of others: [K, K_others]."""
    exact = "donot_use_mm_for_euclid_dist"  # else the distance to a copy is not 0
    flat, others_flat = (_flat(batch, topology) for batch in (networks, others))
    return torch.cdist(flat, others_flat, compute_mode=exact).numpy()


def _action_distances(networks: MLPBatch, others: MLPBatch, states: Tensor) -> np.ndarray:
    """Mean absolute differences of actions over states: [K, K_others]."""
    acts, others_acts = (actions_of(batch, states).flatten(1) for batch in (networks, others))
    return (torch.cdist(acts, others_acts, p=1) / acts.shape[1]).numpy()


def _least(values: np.ndarray) -> np.ndarray:
    """The minimum of every row."""
    return values.min(1)


def _least_of_others(values: np.ndarray) -> np.ndarray:
    """The minimum of every row without the diagonal; NaN for a single row."""
    rest = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    return np.fmin.reduce(rest, axis=1)


def _overlaps(failed: np.ndarray, others_failed: np.ndarray) -> np.ndarray:
    """Episodes that both failed over episodes that either failed: [K, K_others]; 0 if none did."""
    both = (failed[:, None] & others_failed[None]).sum(2)
    return both / np.maximum((failed[:, None] | others_failed[None]).sum(2), 1)


def _means(values: dict[str, np.ndarray]) -> KindFigures:
    return {
        "weight_distance": _mean(values["weight_distance"]),
        "weight_distance_teacher": _mean(values["weight_distance_teacher"]),
        "action_distance": _mean(values["action_distance"]),
        "action_distance_teacher": _mean(values["action_distance_teacher"]),
        "failure_overlap": _mean(values["failure_overlap"]),
        "success_once": float(np.mean(values["success_once"])),
    }


def _mean(values: np.ndarray) -> float | None:
    mean = float(np.mean(values))
    return None if np.isnan(mean) else mean


def _joined(groups: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
