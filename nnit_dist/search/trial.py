"""One trial of a search: trains a rung, has its networks measured, reports, and goes on.

All of it lies in a directory named after the trial's values, so that the same values are never
trained twice: a search that was killed finds what is done, and goes on with what is not. A trial
that takes over another's weights goes on in a directory of its own, which begins with a copy of
the other's rungs.
"""

import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nnit_dist.artifacts.run_directory import METRICS, RunDirectory
from nnit_dist.core.files import copy, read_json, write_json
from nnit_dist.core.storage import path_of
from nnit_dist.search.objective import GHNObjective, NNiTObjective, Objective, PopulationObjective
from nnit_dist.search.results import TRIAL, rung_file, state_file
from nnit_dist.stages.config import RunConfig, with_values

OBJECTIVES: dict[str, type[Objective]] = {
    "population": PopulationObjective,
    "align": GHNObjective,
    "train": NNiTObjective,
}
ORIGIN = "origin.json"  # in Tune's checkpoints: whose they are, and after how many rungs
TAKEOVER = "takeover"  # beside a trial's values: which one, and when, took weights over


def trial_name(values: dict[str, Any]) -> str:
    """Of a trial with these values, by key."""
    said = json.dumps(values, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Place:
    """Where a trial lies, how many rungs it has reported, and whose they are if not its own."""

    name: str
    rungs: int = 0
    donor: str | None = None


def place_of(config: dict[str, Any], checkpoint: tune.Checkpoint | None) -> Place:
    """Of a trial of Tune's: it goes on from its own checkpoint, or from that of another."""
    if checkpoint is None:
        return Place(trial_name(config))
    with checkpoint.as_directory() as directory:
        origin = read_json(Path(directory) / ORIGIN)
    if origin["config"] == config:
        return Place(origin["trial"], origin["rungs"])
    name = trial_name(config | {"donor": origin["trial"], "rungs": origin["rungs"]})
    return Place(name, origin["rungs"], origin["trial"])


def values_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a trial of Tune's varies of the configuration."""
    return {key: value for key, value in config.items() if key != TAKEOVER}


def run_trial(config: dict[str, Any], about: dict[str, Any]) -> None:
    """Ray Tune function trainable. `about` is what all trials of a search have in common."""
    import torch

    torch.set_num_threads(1)
    place, values = place_of(config, tune.get_checkpoint()), values_of(config)
    base, rungs = RunConfig.model_validate(about["config"]), about["rungs"]
    out = path_of(about["out"])
    directory = out / place.name
    if not (directory / TRIAL).exists():
        begins = {"donor": place.donor, "taken_over": place.rungs} if place.donor else {}
        write_json(directory / TRIAL, {"values": values} | begins)
    objective = OBJECTIVES[about["stage"]](
        with_values(base, values, "the search space"),
        base,
        RunDirectory(about["run"]),
        directory,
        rungs,
    )
    if place.donor and not rung_file(directory, place.rungs - 1).exists():
        _take_over(out / place.donor, directory, place.rungs)
    for rung in range(place.rungs, len(rungs)):
        if not rung_file(directory, rung).exists():
            _climb(objective, rung, directory, about)
        found = read_json(rung_file(directory, rung))
        origin = {"trial": place.name, "config": config, "rungs": rung + 1}
        with tempfile.TemporaryDirectory() as kept:
            write_json(Path(kept) / ORIGIN, origin)
            tune.report(
                {key: value for key, value in found.items() if key != "networks"}
                | {"directory": place.name},
                checkpoint=tune.Checkpoint.from_directory(kept),
            )


def _take_over(donor: Path, directory: Path, rungs: int) -> None:
    """Begin a trial with the first rungs of another, and with what goes on from them.

    The last rung is copied last: where it is, all of it is.
    """
    copy(state_file(donor, rungs - 1), state_file(directory, rungs - 1))
    copy(donor / METRICS, directory / METRICS)
    for rung in range(rungs):
        copy(rung_file(donor, rung), rung_file(directory, rung))


def _climb(objective: Objective, rung: int, directory: Path, about: dict[str, Any]) -> None:
    """Train and measure a rung; what it came to is written at once."""
    began = time.monotonic()
    server = about["examiner"]
    trained = objective.train(rung, lambda _, jobs, __: ray.get(server.record.remote(jobs)))
    trained_at = time.monotonic()
    spent = min(trained["seconds"], trained_at - began)  # it may have been trained before
    policies = objective.policies([tuple(h) for h in about["topologies"]], about["samples"])
    written_at = time.monotonic()
    success = ray.get(server.success.remote(policies, about["episodes"]))
    write_json(
        rung_file(directory, rung),
        {
            "rung": rung,
            "step": trained["step"],
            "loss": trained["loss"] if math.isfinite(trained["loss"]) else None,
            "success": sum(success) / len(success),
            "networks": [
                {"policy": p.id, "parameters": p.topology.num_params, "success": found}
                for p, found in zip(policies, success, strict=True)
            ],
            "seconds": {
                "start": round(trained_at - began - spent, 2),
                "train": round(spent, 2),
                "write": round(written_at - trained_at, 2),
                "measure": round(time.monotonic() - written_at, 2),
            },
            **objective.figures(),
        },
    )
    if rung >= 2:  # others may still begin with the state before
        state_file(directory, rung - 2).unlink(missing_ok=True)
