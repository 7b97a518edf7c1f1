"""What a trial trains, rung by rung, and the policies by which it is judged.

A trial's rungs are shares of its steps. Steps are as many as the arithmetic of the configuration's
own training allows: a network of twice the size takes half as many.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from nnit_dist.artifacts.run_directory import (
    AlignDirectory,
    PopulationDirectory,
    RunDirectory,
    TrainDirectory,
)
from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.core.zoo import best_of_trials
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.dagger import DistillationRounds, Record
from nnit_dist.hypernet.model import HypernetModel, build_ghn
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import BAR, NNiTTraining, TrainSegment
from nnit_dist.population.train import trial_specs
from nnit_dist.population.trial import Trial
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.search.results import state_file
from nnit_dist.stages import align as align
from nnit_dist.stages.config import RunConfig
from nnit_dist.training.state import read_metrics


class Objective(Protocol):
    """What a trial trains, and the policies that judge it. `rungs` are shares of its steps."""

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        rungs: Sequence[float],
    ) -> None: ...

    def train(self, rung: int, record: Record) -> dict[str, float]: ...

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]: ...

    def figures(self) -> dict[str, Any]: ...


class PopulationObjective:
    """Trains a population by a PPO recipe; the best snapshot of each of its trials is judged.

    All of a task's architectures and seeds, one after another, until they are good enough or a
    rung's share of the recipe's env steps is spent. What topologies others are judged by means
    nothing here.
    """

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        rungs: Sequence[float],
    ) -> None:
        self.config, self.task = config.population, config.tasks[0]
        self.out = PopulationDirectory(out)
        self.recipe = self.config.recipe_of(self.task)
        self.until = rung_steps(self.recipe.env_steps, rungs)
        self.specs = trial_specs(self.config, [self.task], config.control_mode)

    def train(self, rung: int, record: Record) -> dict[str, float]:
        """As `NNiTObjective.train`; the loss is what the best snapshots return, its sign turned."""
        began, until = time.monotonic(), self.until[rung]
        for spec in self.specs:
            trial = Trial(spec, self.recipe, self.out, self.config.gpu > 0)
            try:
                while not trial.progress.done and trial.progress.env_steps < until:
                    trial.step()
            finally:
                trial.close()
        returns = [member.mean_return for member in best_of_trials(self.out.zoo.members())]
        loss = -sum(returns) / len(returns)
        return {"step": until, "loss": loss, "seconds": time.monotonic() - began}

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """The best snapshot of each trial so far."""
        found = [member.policy for member in best_of_trials(self.out.zoo.members())]
        return sorted(found, key=lambda policy: policy.topology.hidden)

    def figures(self) -> dict[str, Any]:
        sizes = [policy.topology.num_params for policy in self.policies([], 0)]
        return {"parameters": round(sum(sizes) / len(sizes))}


class NNiTObjective:
    """Trains NNiT on a run's hypernetwork; its networks are judged."""

    loss = "flow"

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        rungs: Sequence[float],
    ) -> None:
        self.config, self.out, self.ghn = config, TrainDirectory(out), run.hypernet()
        task = config.tasks[0]
        sampler = HypernetModel.load(self.ghn, task)
        share = work(base.nnit, sampler) / work(config.nnit, sampler)
        steps = max(len(rungs), round(base.nnit.steps * share))
        self.nnit, self.until = (
            config.nnit.model_copy(update={"steps": steps}),
            rung_steps(steps, rungs),
        )

    def train(self, rung: int, record: Record) -> dict[str, float]:
        """Train up to a rung, what was trained before not again.

        Returns the step, the last losses, and the seconds that the steps took, without what there
        was to start.
        """
        until = self.until[rung]
        with StageProgress("steps") as view:
            view.add(BAR, self.nnit.steps)
            segment = TrainSegment(
                f"rung-{rung}",
                until,
                start_from=state_file(self.out.path, rung - 1) if rung else None,
                state=state_file(self.out.path, rung),
            )
            placement, seed = self.config.training, self.config.seed
            NNiTTraining(self.nnit, self.ghn, self.out, placement, seed).run(segment, view)
        return last_of(self.out.metrics, self.loss, self.until, rung)

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """Networks of the model as it is now."""
        model = NNiTModel.load(self.out.nnit).for_task(self.config.tasks[0])
        how, seed = self.config.generate, self.config.seed
        return [
            policy
            for hidden in hiddens
            for policy in model.generate(
                hidden, samples, seed, how.sampler_steps, guidance=how.guidance
            )
        ]

    def figures(self) -> dict[str, Any]:
        return {"parameters": NNiTModel.load(self.out.nnit).parameters}


class GHNObjective:
    """Distils a run's teachers into a hypernetwork, round by round, as its align stage does.

    What the first round learns on are the run's recorded episodes of its teachers. Networks are
    asked of the hypernetwork itself.
    """

    loss = "action_mse"

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        rungs: Sequence[float],
    ) -> None:
        self.config, self.out = config, AlignDirectory(out)
        known = HypernetModel.load(run.hypernet(), config.tasks[0])
        if not run.align.states(known.task.name, 0).exists():
            raise NnitError(
                f"{run.align.path} does not keep what its first round learnt on of "
                f"{known.task.name}; run its align stage again."
            )
        share = decoding(base.align.ghn, known) / decoding(config.align.ghn, known)
        self.steps = max(len(rungs), round(base.align.distill.steps * share))
        self.until = rung_steps(self.steps, rungs)
        self.rounds = DistillationRounds(
            config.align.ghn,
            config.align.distill.model_copy(update={"steps": self.steps}),
            [known.task],
            [known.current.teachers],
            replace(known.distribution, variation=config.topologies.variation),
            run.align,
            self.out,
            config.training,
            config.seed,
            stops=self.until,
        )

    def train(self, rung: int, record: Record) -> dict[str, float]:
        """As `NNiTObjective.train`; `record` rolls out the networks of DAgger."""
        until = self.until[rung]
        with StageProgress("steps") as view:
            view.add(BAR, self.steps)
            self.rounds.train(until, record, view)
        self.rounds.forget()
        return last_of(self.out.metrics, self.loss, self.until, rung)

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """Networks of the hypernetwork as it is now."""
        model, seed = self.rounds.model(), self.config.seed
        return [p for hidden in hiddens for p in model.policies(hidden, samples, seed)]

    def figures(self) -> dict[str, Any]:
        return {"parameters": self.rounds.model().parameters}


def rung_steps(steps: int, rungs: Sequence[float]) -> list[int]:
    """Up to which step each rung trains."""
    return [math.ceil(share * steps) for share in rungs]


def last_of(metrics: Path, loss: str, until: Sequence[int], rung: int) -> dict[str, float]:
    """What was logged last of a rung; `seconds` are those that its steps took."""
    first, step = until[rung - 1] if rung else 0, until[rung]
    rows = [row for row in read_metrics(metrics) if first < row["step"] <= step]
    # They count from zero whenever training goes on.
    ends = [a["seconds"] for a, b in pairwise(rows) if b["seconds"] < a["seconds"]]
    return {"step": step, "loss": rows[-1][loss], "seconds": sum(ends) + rows[-1]["seconds"]}


def decoding(config: GHNConfig, sampler: HypernetModel) -> float:
    """Multiplications of writing a matrix, to a common factor: the decoder's convolutions."""
    ghn = build_ghn(config, [sampler.task], sampler.distribution.max_width)
    blocks = getattr(ghn.decoder, "blocks", None)
    if blocks is None:
        return float(sum(p.numel() for p in ghn.decoder.parameters()))
    return float(sum(block.conv.weight.numel() * block.side**2 for block in blocks))


def work(config: NNiTConfig, sampler: HypernetModel) -> float:
    """Multiplications of a step of NNiT, to a common factor: linear layers and attention."""
    t = config.transformer
    seen = sampler.distribution.seen
    tokens = [patches(sampler.topology(hidden), config.patch) for hidden in seen]
    mean = sum(tokens) / len(tokens)
    square = sum(count**2 for count in tokens) / len(tokens)
    a_network = t.depth * (12 * mean * t.width**2 + 2 * square * t.width)
    return config.topologies_per_step * config.networks_per_topology * a_network


def patches(topology: Topology, patch: int) -> int:
    """Tokens of a topology's weights and biases."""
    across = [
        (math.ceil(out / patch), math.ceil(fan_in / patch)) for out, fan_in in topology.shapes
    ]
    return sum(rows * (columns + 1) for rows, columns in across)
