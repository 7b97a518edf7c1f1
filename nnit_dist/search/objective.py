"""What a trial trains, rung by rung, and the policies that judge it.

A trial's rungs are shares of its steps. Trials of NNiT and of the hypernetwork all have the compute
of the configuration's own training: a model of twice the cost per step takes half the steps.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from nnit_dist.artifacts.run_directory import (
    AlignDirectory,
    PopulationDirectory,
    RunDirectory,
    TrainDirectory,
)
from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import Policy
from nnit_dist.core.topology import Hidden
from nnit_dist.core.zoo import best_of_trials
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.dagger import DistillationRounds, Record
from nnit_dist.hypernet.model import HypernetModel, build_ghn
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.tokens import token_layout
from nnit_dist.nnit.train import BAR, NNiTTraining, TrainSegment
from nnit_dist.population.train import trial_specs
from nnit_dist.population.trial import Trial
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.search.results import state_file
from nnit_dist.stages.config import RunConfig
from nnit_dist.training.state import read_metrics


@dataclass(frozen=True)
class TrainedRung:
    """Result of training a rung.

    Attributes:
        step: the step that it trained to.
        loss: the last logged loss.
        seconds: time of the training steps, without start-up.
    """

    step: int
    loss: float
    seconds: float


class Objective(Protocol):
    """What a trial trains, and the policies that judge it.

    `config` is the trial's configuration and `base` that of the search. Trials start from `run`;
    `out` is the trial's directory. `rungs` are increasing shares of the trial's steps, up to 1.
    """

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        *,
        rungs: Sequence[float],
    ) -> None: ...

    def train(self, rung: int, record: Record) -> TrainedRung:
        """Train up to a rung, starting from the rung before."""

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """Policies of the model trained so far, `samples` for each topology in `hiddens`."""

    def parameters(self) -> int:
        """Number of parameters of the trained model."""


class PopulationObjective:
    """Trains a population by a PPO recipe; the best snapshot of each of its trials is judged.

    It trains all architectures and seeds of a task, one after another, until each is good enough
    or has taken the rung's share of the recipe's env steps. The judging policies are those it
    trained, so `policies` ignores its arguments.
    """

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        *,
        rungs: Sequence[float],
    ) -> None:
        self.config, self.task = config.population, config.tasks[0]
        self.out = PopulationDirectory(out)
        self.recipe = self.config.recipe_of(self.task)
        self.until = rung_steps(self.recipe.env_steps, rungs)
        self.specs = trial_specs(self.config, [self.task], config.control_mode)

    def train(self, rung: int, record: Record) -> TrainedRung:
        """Train up to a rung; the loss is the negative mean return of the best snapshots."""
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
        return TrainedRung(until, loss, time.monotonic() - began)

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """The best snapshot of each trial so far."""
        best = [member.policy for member in best_of_trials(self.out.zoo.members())]
        return sorted(best, key=lambda policy: policy.topology.hidden)

    def parameters(self) -> int:
        """Mean number of parameters of the policies."""
        sizes = [policy.topology.num_params for policy in self.policies([], 0)]
        return round(sum(sizes) / len(sizes))


class NNiTObjective:
    """Trains NNiT on a run's hypernetwork; the networks that it generates judge it."""

    loss = "flow"

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        *,
        rungs: Sequence[float],
    ) -> None:
        self.config, self.out, self.ghn = config, TrainDirectory(out), run.hypernet()
        task = config.tasks[0]
        sampler = HypernetModel.load(self.ghn, task)
        share = work(base.nnit, sampler) / work(config.nnit, sampler)
        steps = max(len(rungs), round(base.nnit.steps * share))
        self.nnit = config.nnit.model_copy(update={"steps": steps})
        self.until = rung_steps(steps, rungs)

    def train(self, rung: int, record: Record) -> TrainedRung:
        """Train up to a rung, starting from the state after the rung before."""
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
        """Networks that the model generates as trained so far."""
        model = NNiTModel.load(self.out.nnit).for_task(self.config.tasks[0])
        settings, seed = self.config.generate, self.config.seed
        return [
            policy
            for hidden in hiddens
            for policy in model.generate(
                hidden, samples, seed, settings.sampler_steps, guidance=settings.guidance
            )
        ]

    def parameters(self) -> int:
        """Number of parameters of the transformer."""
        return NNiTModel.load(self.out.nnit).parameters


class GHNObjective:
    """Distills a run's teachers into a hypernetwork, round by round, as its align stage does.

    The first round learns from the run's recorded teacher rollouts. Networks that the
    hypernetwork itself writes judge it.
    """

    loss = "action_mse"

    def __init__(
        self,
        config: RunConfig,
        base: RunConfig,
        run: RunDirectory,
        out: Path,
        *,
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

    def train(self, rung: int, record: Record) -> TrainedRung:
        """Train up to a rung; `record` rolls out the networks of DAgger."""
        until = self.until[rung]
        with StageProgress("steps") as view:
            view.add(BAR, self.steps)
            self.rounds.train(until, record, view)
        self.rounds.forget()
        return last_of(self.out.metrics, self.loss, self.until, rung)

    def policies(self, hiddens: list[Hidden], samples: int) -> list[Policy]:
        """Networks that the hypernetwork writes as trained so far."""
        model, seed = self.rounds.model(), self.config.seed
        return [p for hidden in hiddens for p in model.policies(hidden, samples, seed)]

    def parameters(self) -> int:
        """Number of parameters of the hypernetwork."""
        return self.rounds.model().parameters


def rung_steps(steps: int, rungs: Sequence[float]) -> list[int]:
    """Last step of each rung."""
    return [math.ceil(share * steps) for share in rungs]


def last_of(metrics: Path, loss: str, until: Sequence[int], rung: int) -> TrainedRung:
    """Read a rung's last logged loss and its training time."""
    first, step = until[rung - 1] if rung else 0, until[rung]
    rows = [row for row in read_metrics(metrics) if first < row["step"] <= step]
    # Logged seconds start from zero whenever training resumes.
    ends = [a["seconds"] for a, b in pairwise(rows) if b["seconds"] < a["seconds"]]
    return TrainedRung(step, rows[-1][loss], sum(ends) + rows[-1]["seconds"])


def decoding(config: GHNConfig, sampler: HypernetModel) -> float:
    """Multiplications to decode a matrix, up to a constant factor: the decoder's convolutions."""
    ghn = build_ghn(config, [sampler.task], sampler.distribution.max_width)
    blocks = getattr(ghn.decoder, "blocks", None)
    if blocks is None:
        return float(sum(p.numel() for p in ghn.decoder.parameters()))
    return float(sum(block.conv.weight.numel() * block.side**2 for block in blocks))


def work(config: NNiTConfig, sampler: HypernetModel) -> float:
    """Multiplications of a step of NNiT, up to a constant factor: linear layers and attention."""
    t = config.transformer
    seen = sampler.distribution.seen
    tokens = [token_layout(sampler.topology(hidden), config.patch).length for hidden in seen]
    mean = sum(tokens) / len(tokens)
    square = sum(count**2 for count in tokens) / len(tokens)
    a_network = t.depth * (12 * mean * t.width**2 + 2 * square * t.width)
    return config.topologies_per_step * config.networks_per_topology * a_network
