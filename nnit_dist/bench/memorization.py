"""`nnit bench memorization`: are NNiT's networks new, or copies of what it was trained on?

The tests of Zeng et al. (arXiv 2506.07998) carried over: how far a network is from the nearest
training network, in weights and in what it does; beside networks that could have been trained on
and were not, and beside trivial ways to make new ones (noise, averages, a Gaussian of every
weight). On seen topologies, with good networks of the first steps of training, drawn again with
exactly these widths: in training they were varied.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nnit_dist.align.ghn import Layers, apply_layers
from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.artifacts import read_json
from nnit_dist.baselines.crops import policies_of
from nnit_dist.bench.results import measured_here, write_results
from nnit_dist.envs.sim import TRAIN_SEEDS, SimEnv
from nnit_dist.errors import NnitError
from nnit_dist.evaluate.rollout import Part, run_part
from nnit_dist.evaluate.run import Evaluation, evaluate
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.source import AlignedSource
from nnit_dist.nnit.tokens import detokenize
from nnit_dist.nnit.train import NNiTConfig
from nnit_dist.policy import Policy
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Hidden, Topology, hidden_name, spread

ABOUT = {
    "nnit": "NNiT",
    "fresh": "from the same source, beyond training",
    "noise": "a training network with noise",
    "average": "average of 16 training networks",
    "gaussian": "a Gaussian of every weight",
}
AVERAGED = 16
GOOD = 0.95  # success that a training network is told to have, to be compared with
NOISE = 0.1  # of the rms of each layer's weights
STATE_EPISODES = 10


def bench_memorization(
    run: Path,
    topologies: list[Hidden],
    trained: int,
    drawn: int,
    episodes: int,
    out: Path,
    actors: int | None,
) -> dict[str, Any]:
    """Compare `drawn` networks of every kind with `trained` training ones; returns the figures.

    Reads a finished run directory. Writes `out/memorization.json`, `.md`, `.png`, and every
    episode (`out/episodes`).
    """
    model = NNiTModel.load(run / "train" / "nnit.safetensors")
    sampler = AlignedSampler.load(run / "align" / "ghn.safetensors")
    states = record_states(sampler)
    if strange := [hidden for hidden in topologies if hidden not in sampler.seen]:
        raise NnitError(
            f"{hidden_name(strange[0])} was not trained on. Seen topologies of {run} are "
            f"{', '.join(map(hidden_name, spread(sampler.seen, 8)))}, ..."
        )
    groups = _groups(run, sampler, model, topologies, trained, drawn)
    policies = [policy for group in groups for policy in group.policies()]
    result = evaluate(policies, episodes, out, actors, title="memorization")
    measured = {kind: _joined([g.measure(kind, states, result) for g in groups]) for kind in ABOUT}
    figures = {
        "task": sampler.task.name,
        **measured_here(),
        "topologies": [list(hidden) for hidden in topologies],
        "trained": trained,
        "drawn": drawn,
        "episodes": episodes,
        "kinds": {
            kind: {name: float(np.mean(values)) for name, values in found.items()}
            for kind, found in measured.items()
        },
    }
    write_results(out, "memorization", figures, as_markdown(figures), plot(measured))
    return figures


def record_states(sampler: AlignedSampler) -> Tensor:
    """Whitened observations [S, obs_dim] that aligned networks visit, from training seeds."""
    env = SimEnv(sampler.task.name, sampler.task.control_mode, reward=False)
    policy = sampler.policies(sampler.seen[-1], 1, 0)[0]
    seeds = tuple(range(TRAIN_SEEDS - STATE_EPISODES, TRAIN_SEEDS))
    rollouts = run_part(env, Part(policy, seeds, record=True))
    env.close()
    assert rollouts.observations is not None
    visited = rollouts.observations.reshape(-1, sampler.task.obs_dim)
    return torch.from_numpy(sampler.norm.apply(visited))


def _groups(
    run: Path,
    sampler: AlignedSampler,
    model: NNiTModel,
    topologies: list[Hidden],
    trained: int,
    drawn: int,
) -> list["_Group"]:
    """Training examples, made again without varied widths, and others from beyond its last step."""
    key = read_json(run / "train" / "manifest.json")["key"]["config"]
    config = NNiTConfig(**key["nnit"])
    source = AlignedSource(replace(sampler, variation=0), config, key["seed"])
    train = _examples(source, topologies, 0, trained)
    fresh = _examples(source, topologies, config.steps, drawn)
    return [_Group(sampler, model, h, train[h], fresh[h], drawn) for h in topologies]


def _examples(
    source: AlignedSource, topologies: list[Hidden], first_step: int, count: int
) -> dict[Hidden, list[Layers]]:
    """The first `count` good networks of each topology from `first_step` on."""
    found: dict[Hidden, list[Layers]] = {hidden: [] for hidden in topologies}
    numbers = range(source.config.topologies * source.config.networks)
    for step in itertools.count(first_step):
        for example in source.examples(step, numbers):
            layout = example.layout
            assert layout is not None and example.x is not None
            wanted = found.get(layout.topology.hidden)
            good = round(example.success, 6) >= GOOD  # it comes from float32
            if wanted is not None and len(wanted) < count and good:
                values = source.whitening.colour(example.x[None], layout)
                wanted.append(detokenize(values, layout))
        if all(len(networks) == count for networks in found.values()):
            return found
    raise AssertionError


class _Group:
    """Networks of one topology: those of training, and of every kind."""

    def __init__(
        self,
        sampler: AlignedSampler,
        model: NNiTModel,
        hidden: Hidden,
        train: list[Layers],
        fresh: list[Layers],
        drawn: int,
    ) -> None:
        self.sampler, self.topology, self.train = sampler, sampler.topology(hidden), train
        self.kinds = {
            "nnit": [self._whitened(policy) for policy in model.generate(hidden, drawn, 1)],
            "fresh": fresh,
            "noise": list(self._noised(drawn)),
            "average": list(self._averaged(drawn)),
            "gaussian": list(self._gaussian(drawn)),
        }

    def policies(self) -> list[Policy]:
        kinds = self.kinds | {"train": self.train}
        return [
            policy
            for kind, networks in kinds.items()
            for policy in policies_of(self.sampler, kind, self.topology, networks, 0)
        ]

    def measure(self, kind: str, states: Tensor, result: Evaluation) -> dict[str, np.ndarray]:
        """Of every network of a kind: what sets it apart from the nearest training network."""
        own, train = self.kinds[kind], self.train
        known = _flat(train)
        distance = torch.cdist(_flat(own), known).min(1).values / known.norm(dim=1).mean()
        acts, known_acts = (_actions(networks, states) for networks in (own, train))
        action = (acts[:, None] - known_acts[None]).abs().mean((2, 3)).min(1).values
        failed = self._failed(result, kind, len(own))
        failed_known = self._failed(result, "train", len(train))
        overlap = [max(_overlap(f, g) for g in failed_known) for f in failed]
        return {
            "weight_distance": distance.numpy(),
            "action_distance": action.numpy(),
            "failure_overlap": np.array(overlap),
            "success_once": 1 - failed.mean(1),
        }

    def _failed(self, result: Evaluation, kind: str, count: int) -> np.ndarray:
        name = self.topology.name
        return np.array([~result.success(f"{kind}_{name}_0_{i}") for i in range(count)])

    def _noised(self, count: int) -> Iterator[Layers]:
        for number in range(count):
            rng, layers = generator_of(8, number), self.train[number % len(self.train)]
            yield [(_with_noise(weight, rng), _with_noise(bias, rng)) for weight, bias in layers]

    def _averaged(self, count: int) -> Iterator[Layers]:
        for number in range(count):
            rng = generator_of(9, number)
            picked = torch.randperm(len(self.train), generator=rng)[:AVERAGED].tolist()
            yield _unflat(_flat([self.train[i] for i in picked]).mean(0), self.topology)

    def _gaussian(self, count: int) -> Iterator[Layers]:
        known = _flat(self.train)
        mean, std = known.mean(0), known.std(0)
        for number in range(count):
            noise = torch.randn(mean.shape, generator=generator_of(10, number))
            yield _unflat(mean + std * noise, self.topology)

    def _whitened(self, policy: Policy) -> Layers:
        """A policy's layers [1, ...] for whitened observations."""
        layers = self.sampler.norm.unfold(policy.layers)
        return [(torch.from_numpy(w)[None], torch.from_numpy(b)[None]) for w, b in layers]


def _flat(networks: list[Layers]) -> Tensor:
    """[K, parameters]: weights in units of 1/sqrt(fan_in), as NNiT sees them, and biases."""
    rows = [[part for pair in layers for part in _parts(*pair)] for layers in networks]
    return torch.stack([torch.cat(row) for row in rows])


def _parts(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return (weight * weight.shape[2] ** 0.5).flatten(), bias[0]


def _unflat(values: Tensor, topology: Topology) -> Layers:
    """Inverse of `_flat`, for one network."""
    layers, start = [], 0
    for out, fan_in in topology.shapes:
        weight = values[start : start + out * fan_in].view(1, out, fan_in) / fan_in**0.5
        start += out * fan_in
        layers.append((weight, values[start : start + out][None]))
        start += out
    return layers


def _with_noise(value: Tensor, rng: torch.Generator) -> Tensor:
    return value + NOISE * value.square().mean().sqrt() * torch.randn(value.shape, generator=rng)


def _actions(networks: list[Layers], states: Tensor) -> Tensor:
    """[K, S, act_dim] of K networks, as they act."""
    return torch.stack([apply_layers(layers, states[None])[0].clamp(-1, 1) for layers in networks])


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Failed episodes of both over those of either; 0 if neither fails."""
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 0.0


def _joined(groups: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def as_markdown(figures: dict[str, Any]) -> str:
    """The table, with what was measured, when and on what."""
    names = ", ".join("x".join(map(str, hidden)) for hidden in figures["topologies"])
    lines = [
        f"# Memorisation on {figures['task']}",
        "",
        f"`nnit bench memorization`, {figures['date']}, {figures['machine']}. Seen topologies "
        f"{names}; {figures['drawn']} networks of every kind beside {figures['trained']} training "
        f"networks of each (drawn again with exactly these widths), {figures['episodes']} episodes "
        "a network.",
        "",
        "| networks | weights | actions | failures | success_once |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, found in figures["kinds"].items():
        lines.append(
            f"| {ABOUT[kind]} | {found['weight_distance']:.3f} | {found['action_distance']:.4f} | "
            f"{found['failure_overlap']:.2f} | {100 * found['success_once']:.1f} |"
        )
    lines += [
        "",
        "weights: distance to the nearest training network, in norms of one. actions: mean "
        "difference of actions from the training network nearest in that, on fixed states. "
        "failures: largest overlap (intersection over union) of failed episodes with a training "
        "network's. A copy would have distances of 0 and, where it fails, an overlap of 1; what is "
        "as new as the source itself has the figures of the second row.",
    ]
    return "\n".join(lines) + "\n"


def plot(measured: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Novelty of every network against its success, in three senses."""
    figure = Figure(figsize=(11, 3.2))
    panels = figure.subplots(1, 3, sharey=True)
    about = {
        "weight_distance": "distance to the nearest in weights",
        "action_distance": "distance to the nearest in actions",
        "failure_overlap": "overlap of failures (less is newer)",
    }
    for axes, (name, label) in zip(panels, about.items(), strict=True):
        for kind, found in measured.items():
            size, zorder = (16, 3) if kind == "nnit" else (10, 2)
            axes.scatter(
                found[name],
                found["success_once"],
                s=size,
                alpha=0.6,
                lw=0,
                zorder=zorder,
                label=ABOUT[kind],
            )
        axes.set_xlabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("success_once")
    panels[2].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(1, 0.2))
    return figure
