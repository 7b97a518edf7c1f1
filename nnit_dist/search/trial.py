"""One trial of a search: for each rung it trains, has its networks measured, and reports.

Its files lie in a directory named after a hash of its values, so that the same values are never
trained twice: a restarted search keeps finished rungs and continues with the others. A trial that
inherits another's weights has its own directory, which starts with a copy of the other's rungs.
"""

import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune

from nnit_dist.artifacts.run_directory import METRICS, RunDirectory
from nnit_dist.core.files import copy, read_json, write_json
from nnit_dist.core.storage import path_of
from nnit_dist.core.topology import Hidden
from nnit_dist.search.config import Stage
from nnit_dist.search.objective import GHNObjective, NNiTObjective, Objective, PopulationObjective
from nnit_dist.search.records import RungRecord, RungReport, TrialFile, Values
from nnit_dist.search.results import TRIAL, rung_file, state_file
from nnit_dist.stages.config import RunConfig, with_values

OBJECTIVES: dict[Stage, type[Objective]] = {
    "population": PopulationObjective,
    "align": GHNObjective,
    "train": NNiTObjective,
}
ORIGIN = "origin.json"  # file in Tune's checkpoints: their trial and its number of rungs
TAKEOVER = "takeover"  # key beside a trial's values: which trial inherited weights, and when


def trial_name(values: Values) -> str:
    """The name of a trial with these values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Place:
    """Directory name of a trial, its number of reported rungs, and the donor of these, if any."""

    name: str
    rungs: int = 0
    donor: str | None = None


class Origin(TypedDict):
    """Origin of a checkpoint: the trial, its configuration in Tune, and its number of rungs."""

    trial: str
    config: Values
    rungs: int


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search have in common.

    Attributes:
        config: the configuration that is searched around.
        stage: what trials train.
        rungs: shares of a trial's steps, after each of which it is measured.
        run, out: addresses of the run that trials start from and of the search's directory.
        topologies: hidden widths of the networks that judge a trial.
        samples, episodes: networks per topology, and episodes per network.
    """

    config: RunConfig
    stage: Stage
    rungs: tuple[float, ...]
    run: str
    out: str
    topologies: list[Hidden]
    samples: int
    episodes: int


def place_of(config: Values, checkpoint: tune.Checkpoint | None) -> Place:
    """Place of a trial in Tune, which resumes from its own checkpoint or inherits another's."""
    if checkpoint is None:
        return Place(trial_name(config))
    with checkpoint.as_directory() as directory:
        origin: Origin = read_json(Path(directory) / ORIGIN)
    if origin["config"] == config:
        return Place(origin["trial"], origin["rungs"])
    name = trial_name(config | {"donor": origin["trial"], "rungs": origin["rungs"]})
    return Place(name, origin["rungs"], origin["trial"])


def values_of(config: Values) -> Values:
    """Configuration values that a trial in Tune varies."""
    return {key: value for key, value in config.items() if key != TAKEOVER}


def run_trial(config: Values, context: SearchContext, server: Any) -> None:
    """Train, measure and report the rungs of a trial, as a function trainable of Ray Tune.

    Finished rungs are only reported. `server` is the actor of an `EvaluationServer`.
    """
    import torch

    torch.set_num_threads(1)
    place, values = place_of(config, tune.get_checkpoint()), values_of(config)
    out = path_of(context.out)
    directory = out / place.name
    if not (directory / TRIAL).exists():
        trial: TrialFile = {"values": values}
        if place.donor:
            trial |= {"donor": place.donor, "inherited": place.rungs}
        write_json(directory / TRIAL, trial)
    objective = OBJECTIVES[context.stage](
        with_values(context.config, values, "the search space"),
        context.config,
        RunDirectory(context.run),
        directory,
        rungs=context.rungs,
    )
    if place.donor and not rung_file(directory, place.rungs - 1).exists():
        _inherit(out / place.donor, directory, place.rungs)
    for rung in range(place.rungs, len(context.rungs)):
        if not rung_file(directory, rung).exists():
            _climb(objective, rung, directory, context, server=server)
        _report(
            rung_file(directory, rung), {"trial": place.name, "config": config, "rungs": rung + 1}
        )


def _report(file: Path, origin: Origin) -> None:
    """Report the result of a rung to Tune, with a checkpoint that names its trial."""
    record: RungRecord = read_json(file)
    record.pop("networks", None)
    report: RungReport = {**record, "directory": origin["trial"]}
    with tempfile.TemporaryDirectory() as kept:
        write_json(Path(kept) / ORIGIN, origin)
        tune.report(dict(report), checkpoint=tune.Checkpoint.from_directory(kept))


def _inherit(donor: Path, directory: Path, rungs: int) -> None:
    """Copy the first rungs of another trial, and the training state after them.

    The last rung is copied last: if it exists, the copy is complete.
    """
    copy(state_file(donor, rungs - 1), state_file(directory, rungs - 1))
    copy(donor / METRICS, directory / METRICS)
    for rung in range(rungs):
        copy(rung_file(donor, rung), rung_file(directory, rung))


def _climb(
    objective: Objective, rung: int, directory: Path, context: SearchContext, *, server: Any
) -> None:
    """Train and measure a rung, and write its result."""
    began = time.monotonic()
    trained = objective.train(rung, lambda _, jobs, __: ray.get(server.record.remote(jobs)))
    trained_at = time.monotonic()
    spent = min(trained.seconds, trained_at - began)  # an earlier run may have trained it
    policies = objective.policies(context.topologies, context.samples)
    written_at = time.monotonic()
    successes = ray.get(server.success.remote(policies, context.episodes))
    record: RungRecord = {
        "rung": rung,
        "step": trained.step,
        "loss": trained.loss if math.isfinite(trained.loss) else None,
        "success": sum(successes) / len(successes),
        "networks": [
            {"policy": p.id, "parameters": p.topology.num_params, "success": success}
            for p, success in zip(policies, successes, strict=True)
        ],
        "seconds": {
            "start": round(trained_at - began - spent, 2),
            "train": round(spent, 2),
            "write": round(written_at - trained_at, 2),
            "measure": round(time.monotonic() - written_at, 2),
        },
        "parameters": objective.parameters(),
    }
    write_json(rung_file(directory, rung), record)
    if rung >= 2:  # others may still start from the state before
        state_file(directory, rung - 2).unlink(missing_ok=True)
