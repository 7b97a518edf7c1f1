"""`nnit bench generalization`: NNiT and baselines on topologies that training never saw.

All methods use the zoo and states of one run and start from the same states; all samples count.
Topologies that a method cannot write are left out of its mean and reported: a flat vector, for
example, has no room for a wider network.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.baselines import Generator
from nnit_dist.baselines.crops import AlignedCrops, PatchGaussian, TrainedCrops
from nnit_dist.baselines.trained import NNiTOn, TrainedBaselines
from nnit_dist.bench.results import BenchSize, MeasuredHere, measured_here, write_results
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import points_cell
from nnit_dist.core.policy import Policy
from nnit_dist.core.splits import UnseenKind, spread
from nnit_dist.core.topology import Hidden
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.rollout.evaluation import Evaluator
from nnit_dist.rollout.results import (
    MethodSummary,
    NetworkResult,
    PairedDifference,
    hidden_of,
)
from nnit_dist.rollout.summaries import paired_results, success_interval, summarize
from nnit_dist.runtime.progress import StageProgress

ABOUT = {
    "nnit": "NNiT",
    "ghn": "direct GHN query",
    "aligned_crop": "nearest seen aligned network, cropped or padded",
    "crop_average": "average of 16 cropped aligned networks",
    "patch_gaussian": "every aligned patch from its own Gaussian",
    "flat_diffusion": "flat-vector diffusion on aligned networks",
    "nnit_mlp": "NNiT on the weights of a GHN with MLP decoder",
    "nnit_matched": "NNiT on permutation-matched weights",
    "nnit_independent": "NNiT on weights that are not aligned",
    "trained_crop": "a trained policy, cropped or padded",
}
AVERAGED = 16


class MethodComparison(MethodSummary):
    """Success of a method on a kind of topologies, and NNiT's minus it, paired by topology."""

    nnit_less: PairedDifference | None


class GeneralizationFigures(MeasuredHere):
    """What `nnit bench generalization` measures.

    `topologies` has the hidden widths by kind. `cannot` has the reasons why a method could not
    write a network, by method and kind. `failures` has the reasons why a network could not be
    measured, by policy id.
    """

    task: str
    samples: int
    episodes: int
    topologies: dict[UnseenKind, list[list[int]]]
    methods: list[MethodComparison]
    cannot: dict[str, dict[str, list[str]]]
    failures: dict[str, str]


def bench_generalization(
    run: RunDirectory,
    task: str,
    kinds: list[UnseenKind],
    size: BenchSize,
    *,
    out: Path,
    actors: int | None = None,
    trained_baselines: Path | None = None,
) -> GeneralizationFigures:
    """Measure every method on unseen topologies of each of `kinds`; returns the figures.

    Reads one task of a finished run directory. With a directory `trained_baselines`, also trains
    baselines into it. Writes `out/generalization.json`, `.md` and `.png`, and every episode
    (`out/episodes`), from which a killed benchmark resumes.

    Raises:
        NnitError: the run held out no topologies of these kinds.
    """
    held_out = run.split().unseen
    topologies = {
        kind: spread(held_out[kind], size.topologies) for kind in kinds if held_out.get(kind)
    }
    if not topologies:
        raise NnitError(f"{run} held out no topologies of kind {', '.join(kinds)}.")
    kind_of = {hidden: kind for kind, hiddens in topologies.items() for hidden in hiddens}
    policies: list[Policy] = []
    cannot: dict[str, dict[str, list[str]]] = {}
    for generator in _generators(run, task, trained_baselines):
        for hidden, kind in kind_of.items():
            try:
                policies += generator.generate(hidden, size.samples, 0)
            except NnitError as error:
                cannot.setdefault(generator.name, {}).setdefault(kind, []).append(str(error))
    measured = run.evaluate.episodes(task)  # copied, so that it is not measured again
    if measured.exists():
        shutil.copytree(measured, out / "episodes", dirs_exist_ok=True)
    evaluator = Evaluator(actors, title="generalization")
    result = evaluator.evaluate(policies, size.episodes, out)
    networks: list[NetworkResult] = [
        {**row, "task": task, "method": row["source"], "kind": kind_of[hidden_of(row)]}
        for row in result.rows()
    ]
    figures: GeneralizationFigures = {
        "task": task,
        "samples": size.samples,
        "episodes": size.episodes,
        **measured_here(),
        "topologies": {kind: [list(h) for h in hiddens] for kind, hiddens in topologies.items()},
        "methods": list(_compare(networks, list(topologies))),
        "cannot": cannot,
        "failures": result.failures,
    }
    text, picture = as_markdown(figures), plot(figures)
    write_results(out, "generalization", figures, text=text, plot=picture)
    return figures


class _Direct:
    """Direct GHN queries: the hypernetwork writes the topology itself."""

    name = "ghn"

    def __init__(self, sampler: HypernetModel) -> None:
        self.sampler = sampler

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        return self.sampler.policies(hidden, samples, seed)


def _generators(
    run: RunDirectory, task: str, trained_baselines: Path | None
) -> Iterator[Generator]:
    model = NNiTModel.load(run.nnit()).for_task(task)
    sampler = HypernetModel.load(run.hypernet(), task)
    yield NNiTOn(model, "nnit")
    yield _Direct(sampler)
    yield AlignedCrops(sampler, 1, "aligned_crop")
    yield AlignedCrops(sampler, AVERAGED, "crop_average")
    yield PatchGaussian(sampler, model.vocabulary.patch)
    yield TrainedCrops(sampler, [member.policy for member in run.teachers(task)])
    if trained_baselines is None:
        return
    with StageProgress("steps") as view:
        baselines = TrainedBaselines(run, task, trained_baselines, view.watch)
        yield baselines.flat()
        for weights in ("independent", "matched", "mlp"):
            yield baselines.nnit(weights)


def _compare(networks: list[NetworkResult], kinds: list[UnseenKind]) -> Iterator[MethodComparison]:
    """Compare every method with NNiT on every kind of topologies."""
    for kind in kinds:
        same = [network for network in networks if network["kind"] == kind]
        ours = [network for network in same if network["method"] == "nnit"]
        for method in ABOUT:
            theirs = [network for network in same if network["method"] == method]
            if theirs:
                pair = paired_results(ours, theirs) if method != "nnit" else None
                yield {"method": method, "kind": kind, **summarize(theirs), "nnit_less": pair}


def as_markdown(figures: GeneralizationFigures) -> str:
    """The results as Markdown: how they were measured, and a table."""
    counts = ", ".join(
        f"{len(held_out)} of kind {kind}" for kind, held_out in figures["topologies"].items()
    )
    lines = [
        f"# Generalization on {figures['task']}",
        "",
        f"`nnit bench generalization`, {figures['date']}, {figures['machine']}. Topologies that "
        f"training never saw: {counts}; {figures['samples']} samples of each, "
        f"{figures['episodes']} episodes a network, the same start states for every method, all "
        "samples counted. success_once in %, mean and 95% interval over topologies; NNiT less the "
        "method in points, paired by topology.",
        "",
        "| kind | method | success_once | NNiT less it |",
        "| --- | --- | --- | --- |",
    ]
    for row in figures["methods"]:
        success = success_interval(row)
        pair = row["nnit_less"]
        less = points_cell(pair["difference"], pair["low"], pair["high"]) if pair else ""
        method, missing = ABOUT[row["method"]], figures["cannot"].get(row["method"], {})
        if left_out := len(missing.get(row["kind"], [])):
            method += f" (cannot write {left_out} of them)"
        lines.append(f"| {row['kind']} | {method} | {success} | {less} |")
    measured = {(row["method"], row["kind"]) for row in figures["methods"]}
    for method, by_kind in figures["cannot"].items():
        kinds = [kind for kind in by_kind if (method, kind) not in measured]
        if kinds:
            lines += ["", f"{ABOUT[method]}: cannot write any of kind {', '.join(kinds)}."]
    return "\n".join(lines) + "\n"


def plot(figures: GeneralizationFigures) -> Figure:
    """Mean success of every method with its interval, one panel per kind of topologies."""
    kinds = list(figures["topologies"])
    measured = {(row["method"], row["kind"]): row for row in figures["methods"]}
    methods = [name for name in ABOUT if any((name, kind) in measured for kind in kinds)][::-1]
    figure = Figure(figsize=(2.6 * len(kinds) + 2.6, 0.32 * len(methods) + 1))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, method in enumerate(methods):
            row = measured.get((method, kind))
            if row is None:
                axes.text(2, place, "cannot", va="center", fontsize=7, color="#8c959f")
                continue
            mean, low, high = (100 * row["success_once"], 100 * row["low"], 100 * row["high"])
            color = "#0969da" if method == "nnit" else "#8c959f"
            axes.barh(place, mean, xerr=[[mean - low], [high - mean]], color=color)
        axes.set_yticks(range(len(methods)), [ABOUT[method] for method in methods], fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_title(f"unseen: {kind}", fontsize=10)
        axes.set_xlabel("success_once in %", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
