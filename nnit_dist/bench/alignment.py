"""`nnit bench alignment`: how aligned five kinds of weights are, and how well NNiT learns each.

The kinds are networks trained independently, the same networks permutation-matched, and networks
of hypernetworks with an MLP decoder, with 1x1 convolutions and with the spatial decoder. All use
the same teachers, states and topologies.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.baselines.crops import policies_of
from nnit_dist.baselines.trained import COPIES, NNiTOn, TrainedBaselines
from nnit_dist.bench.results import BenchSize, MeasuredHere, measured_here, write_results
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import stream
from nnit_dist.core.splits import UnseenKind, spread
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.metrics import neighbor_correlation, neuron_similarity
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.tokens import detokenize, token_layout, tokenize
from nnit_dist.report.plots import show_matrix
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.results import PolicyResult, Summary, hidden_of
from nnit_dist.rollout.summaries import success_interval, summarize
from nnit_dist.runtime.progress import StageProgress

ABOUT = {
    "independent": "trained each on its own",
    "matched": "permutation-matched",
    "mlp": "GHN, MLP decoder",
    "pointwise": "GHN, 1x1 convolutions",
    "spatial": "GHN, spatial decoder",
}
NNIT_ON: tuple[UnseenKind, ...] = ("combination", "width")
SuccessOf = Literal["whole", "mixed", "nnit_combination", "nnit_width"]
SUCCESS_OF: tuple[SuccessOf, ...] = ("whole", "mixed", "nnit_combination", "nnit_width")
STATES = 1000
PAIRS = 200
# A batch of one network, by hidden widths, index of a best teacher, and number of the copy.
Networks = Callable[[Hidden, int, int], MLPBatch]


class Similarity(TypedDict):
    """Correlation of corresponding neurons between copies, between teachers, between widths."""

    copies: float
    teachers: float
    widths: float


class WeightsFigures(TypedDict, total=False):
    """How aligned one kind of weights is, and the success of its networks.

    `neighbors` has correlations of neighboring weights, along neurons and along inputs. `whole` is
    the success of unchanged networks, `mixed` that of networks with patches from two. `nnit_*` is
    the success of NNiT, trained on these weights, on one kind of unseen topologies.
    """

    neighbors: tuple[float, float]
    similarity: Similarity
    whole: Summary
    mixed: Summary
    nnit_combination: Summary
    nnit_width: Summary


class AlignmentFigures(MeasuredHere):
    """What `nnit bench alignment` measures, by kind of weights."""

    task: str
    weights: dict[str, WeightsFigures]
    failures: dict[str, str]


def bench_alignment(
    run: RunDirectory,
    task: str,
    cache: Path,
    size: BenchSize,
    *,
    out: Path,
    actors: int | None = None,
) -> AlignmentFigures:
    """Measure every kind of weights; returns the figures.

    Reads one task of a finished run directory with its states. Trains missing baselines and keeps
    them in `cache`. Measures the weights on seen topologies, and NNiT on unseen ones. Writes
    `out/alignment.json`, `.md` and `.png`, and every episode (`out/episodes`).
    """
    held_out = run.split().unseen
    unseen = {
        kind: spread(held_out[kind], size.topologies) for kind in NNIT_ON if held_out.get(kind)
    }
    with StageProgress("steps") as view:
        trained_baselines = TrainedBaselines(run, task, cache, view.watch)
        weights = _weights(trained_baselines)
        writers = {kind: _writer(trained_baselines, kind) for kind in ABOUT}
    obs = DistillationData.load(trained_baselines.states).obs[0][:STATES]
    seen = spread(trained_baselines.sampler.distribution.seen, size.topologies)
    figures: dict[str, WeightsFigures] = {
        kind: {
            "neighbors": neighbor_correlation(
                MLPBatch.cat(
                    [network(hidden, number, number) for number, hidden in enumerate(seen)]
                )
            ),
            "similarity": _similarity(network, trained_baselines.sampler.distribution.seen, obs),
        }
        for kind, network in weights.items()
    }
    policies = [
        *_mixed(trained_baselines, weights, seen, size.samples),
        *(
            policy
            for writer in writers.values()
            for hiddens in unseen.values()
            for hidden in hiddens
            for policy in writer.generate(hidden, size.samples, 0)
        ),
    ]
    evaluation = Evaluator(actors, title="alignment").evaluate(policies, size.episodes, out)
    for kind in ABOUT:
        figures[kind] |= _success(kind, unseen, evaluation.rows())
    result: AlignmentFigures = {
        "task": task,
        **measured_here(),
        "weights": figures,
        "failures": evaluation.failures,
    }
    deep = max(trained_baselines.sampler.distribution.seen, key=lambda h: (len(h) == 2, sum(h)))
    text, picture = as_markdown(result), pictures(weights, deep)
    write_results(out, "alignment", result, text=text, plot=picture)
    return result


def _success(
    kind: str, unseen: dict[UnseenKind, list[Hidden]], rows: list[PolicyResult]
) -> WeightsFigures:
    """Success of networks of one kind of weights, and of NNiT trained on them."""

    def of(source: str) -> list[PolicyResult]:
        return [row for row in rows if row["source"] == source]

    figures: WeightsFigures = {
        "whole": summarize(of(f"{kind}_whole")),
        "mixed": summarize(of(f"{kind}_mixed")),
    }
    written = {
        name: [row for row in of(f"nnit_{kind}") if hidden_of(row) in hiddens]
        for name, hiddens in unseen.items()
    }
    if "combination" in written:
        figures["nnit_combination"] = summarize(written["combination"])
    if "width" in written:
        figures["nnit_width"] = summarize(written["width"])
    return figures


def _weights(trained_baselines: TrainedBaselines) -> dict[str, Networks]:
    """The networks of every kind of weights, on seen topologies."""
    networks: dict[str, Networks] = {}
    for kind in ("independent", "matched"):
        networks[kind] = _listed(trained_baselines, trained_baselines.networks(kind))
    networks["mlp"] = _sampled(trained_baselines.aligned("mlp"))
    networks["pointwise"] = _sampled(trained_baselines.aligned("pointwise"))
    networks["spatial"] = _sampled(trained_baselines.sampler)
    return networks


def _listed(trained_baselines: TrainedBaselines, networks: MLPBatch) -> Networks:
    """Only networks of exact widths that imitate one teacher: see `TrainedBaselines.networks`."""
    sampler = trained_baselines.sampler
    seen, teachers = sampler.distribution.seen, len(sampler.current.best)

    def network(hidden: Hidden, teacher: int, copy: int) -> MLPBatch:
        group = seen.index(hidden) * COPIES + 2 * copy % COPIES
        return networks.select([group * teachers + teacher % teachers])

    return network


def _sampled(sampler: HypernetModel) -> Networks:
    def network(hidden: Hidden, teacher: int, copy: int) -> MLPBatch:
        mix = sampler.single_teacher(sampler.current.best[teacher % len(sampler.current.best)])
        rng = stream("alignment.networks", teacher, copy)
        return sampler.networks([sampler.topology(hidden)], mix[None], [rng])

    return network


def _writer(trained_baselines: TrainedBaselines, kind: str) -> NNiTOn:
    if kind == "spatial":
        model = NNiTModel.load(trained_baselines.run.nnit())
        return NNiTOn(model.for_task(trained_baselines.task), "nnit_spatial")
    return trained_baselines.nnit(kind)  # type: ignore[arg-type]


def _similarity(network: Networks, seen: list[Hidden], obs: torch.Tensor) -> Similarity:
    """Mean similarity over random pairs of copies, of teachers and of widths."""
    rng = np.random.default_rng(0)
    same_depth = [[h for h in seen if len(h) == len(hidden)] for hidden in seen]
    copies, teachers, widths = [], [], []
    for _ in range(PAIRS):
        index = int(rng.integers(len(seen)))
        hidden, others = seen[index], same_depth[index]
        other = others[int(rng.integers(len(others)))]
        one = network(hidden, 0, 0)
        copies.append(neuron_similarity(one, network(hidden, 0, 1), obs))
        teachers.append(neuron_similarity(one, network(hidden, 1, 1), obs))
        if other != hidden:
            widths.append(neuron_similarity(one, network(other, 0, 1), obs))
    return {
        "copies": float(np.mean(copies)),
        "teachers": float(np.mean(teachers)),
        "widths": float(np.mean(widths)),
    }


def _mixed(
    trained_baselines: TrainedBaselines,
    weights: dict[str, Networks],
    seen: list[Hidden],
    samples: int,
) -> list[Policy]:
    """Unchanged networks, and networks whose patches come from two copies of the same teacher."""
    policies = []
    for kind, network in weights.items():
        for hidden in seen:
            topology = trained_baselines.sampler.topology(hidden)
            whole, mixed = [], []
            for sample in range(samples):
                one, other = (network(hidden, sample, copy) for copy in range(2))
                rng = stream("alignment.patches", sample)
                whole.append(one)
                mixed.append(
                    mix_patches(topology, one, other, trained_baselines.config.patch, rng=rng)
                )
            policies += policies_of(trained_baselines.sampler, f"{kind}_whole", whole, 0)
            policies += policies_of(trained_baselines.sampler, f"{kind}_mixed", mixed, 0)
    return policies


def mix_patches(
    topology: Topology, one: MLPBatch, other: MLPBatch, patch: int, *, rng: torch.Generator
) -> MLPBatch:
    """A network that takes each patch from either of two networks with probability 1/2."""
    layout = token_layout(topology, patch)
    coin = torch.rand(layout.length, generator=rng) < 0.5
    a, b = tokenize(one, layout), tokenize(other, layout)
    return detokenize(torch.where(coin[None, :, None], a, b), layout)


def as_markdown(figures: AlignmentFigures) -> str:
    """Two tables in Markdown: how aligned the weights are, and the success of their networks."""
    lines = [
        f"# Alignment on {figures['task']}",
        "",
        f"`nnit bench alignment`, {figures['date']}, {figures['machine']}. All from the same "
        "teachers, states and topologies.",
        "",
        "| weights | neighbors: neurons | neighbors: inputs | like its copy | like another "
        "teacher's | like another width's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, row in figures["weights"].items():
        down, across = row["neighbors"]
        like = row["similarity"]
        lines.append(
            f"| {ABOUT[kind]} | {down:.2f} | {across:.2f} | {like['copies']:.2f} | "
            f"{like['teachers']:.2f} | {like['widths']:.2f} |"
        )
    lines += [
        "",
        "Correlation of neighboring weights along a layer's neurons and along its inputs; "
        "correlation over states of corresponding neurons' activations between two networks.",
        "",
        "| weights | whole | patches of two mixed | NNiT, combination | NNiT, width |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, row in figures["weights"].items():
        summaries = (row.get(name) for name in SUCCESS_OF)
        cells = map(success_interval, summaries)
        lines.append(f"| {ABOUT[kind]} | {' | '.join(cells)} |")
    lines += [
        "",
        "success_once in %, mean and 95% interval over topologies. Networks trained each on their "
        f"own are a fixed set, {COPIES} for each seen topology and teacher, half of them after "
        "mixes of teachers; hypernetworks write fresh ones, after mixes, at every step of NNiT's "
        "training. The states include those that networks of the spatial hypernetwork visited.",
    ]
    return "\n".join(lines) + "\n"


def pictures(weights: dict[str, Networks], hidden: Hidden) -> Figure:
    """The second layer of two networks of every kind, one above the other."""
    figure = Figure(figsize=(2.2 * len(weights), 4.6))
    axes = figure.subplots(2, len(weights))
    for column, (kind, network) in enumerate(weights.items()):
        for row in range(2):
            matrix = network(hidden, 0, row).layers(0)[1][0].numpy()
            show_matrix(axes[row, column], matrix, ABOUT[kind] if row == 0 else "")
    return figure
