"""The generate stage: NNiT writes policies of every topology that will be measured.

Reads: the model of the train stage.
Does: samples networks of unseen topologies of each kind, and of some seen ones for comparison.
Writes: policy files in `generate/policies/TASK`, and those of the studies, if any, in
`generate/studies/TASK`.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnit_dist.artifacts.run_directory import GenerateDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import save_policies
from nnit_dist.core.splits import WITHIN, spread
from nnit_dist.core.topology import Hidden
from nnit_dist.nnit.config import DEFAULT_STEPS
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.plan import Figures, RunContext, StagePlan
from nnit_dist.stages.studies import study_policies, study_size

AT_ONCE = 64  # samples of a topology that are in memory
STUDIED = 24  # number of unseen topologies in the studies


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if the train stage is not finished."""
    context.run.require("train")
    return StagePlan(
        "generate",
        context.reads("topologies", "generate", "seed"),
        {"model": context.run.nnit()},
        lambda out: _generate(context, GenerateDirectory(out)),
        uses_ray=False,
    )


def _generate(context: RunContext, out: GenerateDirectory) -> Figures:
    config, topologies = context.config, measured_topologies(context)
    model = NNiTModel.load(context.run.nnit())
    sampler = Sampler(config.generate.sampler_steps, guidance=config.generate.guidance)
    total, studied = Written(), 0
    for task in config.tasks:
        task_model = model.for_task(task)
        total += generate_policies(
            task_model,
            topologies,
            config.generate.samples,
            out.policies / task,
            sampler=sampler,
            seed=config.seed,
        )
        if config.generate.studies:
            studied += _generate_studies(context, task_model, out.studies / task)
    return {**total.figures(), **({"studied": studied} if studied else {})}


def _generate_studies(context: RunContext, model: NNiTModel, out: Path) -> int:
    """Write the networks of the studies; returns how many."""
    unseen = [hidden for kind in WITHIN for hidden in context.split.unseen.get(kind, [])]
    topologies, count = spread(unseen or context.split.seen, STUDIED), 0
    with StageProgress("networks") as view:
        view.add("studies", total=study_size(topologies))
        for study, policy in study_policies(model, topologies, context.config.seed):
            save_policies([policy], out / study, overwrite=True)
            count += 1
            view.update("studies", count)
    return count


def measured_topologies(context: RunContext) -> list[Hidden]:
    """The topologies to measure: unseen ones of every kind, then evenly spaced seen ones."""
    generate, split = context.config.generate, context.split
    counts = generate.unseen_topologies
    chosen = [
        held if counts is None else spread(held, counts.get(kind, 0))
        for kind, held in split.unseen.items()
    ]
    chosen.append(spread(split.seen, generate.seen_topologies))
    return [hidden for topologies in chosen for hidden in topologies]


@dataclass(frozen=True)
class Sampler:
    """Settings of the sampler; see `NNiTModel.generate`."""

    steps: int = DEFAULT_STEPS
    success: float | None = None
    guidance: float = 0.0


@dataclass(frozen=True)
class Written:
    """How many networks were written, and in how many seconds."""

    networks: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.networks + other.networks, self.seconds + other.seconds)

    @property
    def milliseconds_a_network(self) -> float:
        """Mean time to write a network, in milliseconds."""
        return round(1e3 * self.seconds / max(self.networks, 1), 2)

    def figures(self) -> Figures:
        """The figures that the manifest stores."""
        return {"networks": self.networks, "milliseconds_a_network": self.milliseconds_a_network}


def generate_policies(
    model: NNiTModel,
    topologies: Iterable[Hidden],
    samples: int,
    out: Path,
    *,
    sampler: Sampler,
    seed: int,
    overwrite: bool = False,
) -> Written:
    """Write `samples` policy files of every topology into `out`.

    File names carry topology, seed and sample, so the same call writes the same files.

    Raises:
        NnitError: the model cannot write a topology, or, without `overwrite`, a file of this name
            holds another policy.
    """
    topologies, written, seconds = list(topologies), 0, 0.0
    with StageProgress("networks") as view:
        view.add("generate", total=len(topologies) * samples)
        for hidden in topologies:
            for first in range(0, samples, AT_ONCE):
                began = time.perf_counter()
                policies = model.generate(
                    hidden,
                    min(AT_ONCE, samples - first),
                    seed,
                    sampler.steps,
                    first=first,
                    success=sampler.success,
                    guidance=sampler.guidance,
                )
                seconds += time.perf_counter() - began
                save_policies(policies, out, overwrite)
                written += len(policies)
                view.update("generate", written)
    return Written(written, seconds)


def draw_topologies(
    model: NNiTModel, count: int, seed: int, success: float | None = None
) -> list[Hidden]:
    """Draw `count` topologies from the model, of networks with this `success` in [0, 1].

    Raises:
        NnitError: too few of the topologies that the model draws are valid.
    """
    drawn: list[Hidden] = []
    for attempt in range(20):
        drawn += model.draw_architectures(count, seed + 1_000_003 * attempt, success)
        if len(drawn) >= count:
            return drawn[:count]
    raise NnitError("the model draws no valid architectures; it is not trained far enough.")
