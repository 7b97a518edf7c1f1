"""One trial of a search: trains a rung, has its networks measured, reports, and goes on.

All of it lies in a directory named after the trial's values, so that the same values are never
trained twice: a search that was killed finds what is done, and goes on with what is not. A trial
that inherits another's weights goes on in a directory of its own, which begins with a copy of the
other's rungs.
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
ORIGIN = "origin.json"  # in Tune's checkpoints: whose they are, and after how many rungs
TAKEOVER = "takeover"  # beside a trial's values: which one, and when, inherited weights


def trial_name(values: Values) -> str:
    """The name of a trial with these values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Place:
    """Where a trial lies, how many rungs it has reported, and whose they are if not its own."""

    name: str
    rungs: int = 0
    donor: str | None = None


class Origin(TypedDict):
    """Whose checkpoint it is: of which trial, by which configuration of Tune's, at which rung."""

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
        run, out: the run that trials begin with, and the directory of the search, as addresses.
        topologies: those that judge a trial, with so many `samples` of each and `episodes`.
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
    """The place of a trial of Tune's: it goes on from its own checkpoint, or from another's."""
    if checkpoint is None:
        return Place(trial_name(config))
    with checkpoint.as_directory() as directory:
        origin: Origin = read_json(Path(directory) / ORIGIN)
    if origin["config"] == config:
        return Place(origin["trial"], origin["rungs"])
    name = trial_name(config | {"donor": origin["trial"], "rungs": origin["rungs"]})
    return Place(name, origin["rungs"], origin["trial"])


def values_of(config: Values) -> Values:
    """What a trial of Tune's varies of the configuration."""
    return {key: value for key, value in config.items() if key != TAKEOVER}


def run_trial(config: Values, context: SearchContext, server: Any) -> None:
    """Ray Tune function trainable: train and measure rung after rung, those that are done not
    again. `server` is the actor of an `EvaluationServer`.
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
    """Tell Tune what a rung came to, with a checkpoint that says whose it is."""
    record: RungRecord = read_json(file)
    record.pop("networks", None)
    report: RungReport = {**record, "directory": origin["trial"]}
    with tempfile.TemporaryDirectory() as kept:
        write_json(Path(kept) / ORIGIN, origin)
        tune.report(dict(report), checkpoint=tune.Checkpoint.from_directory(kept))


def _inherit(donor: Path, directory: Path, rungs: int) -> None:
    """Begin a trial with the first rungs of another, and with what goes on from them.

    The last rung is copied last: where it is, all of it is.
    """
    copy(state_file(donor, rungs - 1), state_file(directory, rungs - 1))
    copy(donor / METRICS, directory / METRICS)
    for rung in range(rungs):
        copy(rung_file(donor, rung), rung_file(directory, rung))


def _climb(
    objective: Objective, rung: int, directory: Path, context: SearchContext, *, server: Any
) -> None:
    """Train and measure a rung; what it came to is written at once."""
    began = time.monotonic()
    trained = objective.train(rung, lambda _, jobs, __: ray.get(server.record.remote(jobs)))
    trained_at = time.monotonic()
    spent = min(trained.seconds, trained_at - began)  # it may have been trained before
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
    if rung >= 2:  # others may still begin with the state before
        state_file(directory, rung - 2).unlink(missing_ok=True)
