"""One trial of a search: trains a rung, has its networks measured, reports, and goes on.

All of it lies in a directory named after the trial's values, so that the same values are never
trained twice: a search that was killed finds what is done, and goes on with what is not.
"""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nnit_dist.artifacts import read_json, write_json
from nnit_dist.config import RunConfig, with_values
from nnit_dist.storage import path_of
from nnit_dist.tune.objective import (
    GHNObjective,
    NNiTObjective,
    Objective,
    PopulationObjective,
)
from nnit_dist.tune.results import RUNGS, TRIAL, rung_file

OBJECTIVES: dict[str, type[Objective]] = {
    "population": PopulationObjective,
    "align": GHNObjective,
    "train": NNiTObjective,
}


def trial_name(values: dict[str, Any]) -> str:
    """Of a trial with these values, by key."""
    said = json.dumps(values, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:10]


def run_trial(values: dict[str, Any], about: dict[str, Any]) -> None:
    """Ray Tune function trainable. `about` is what all trials of a search have in common."""
    import torch

    torch.set_num_threads(1)
    base = RunConfig.model_validate(about["config"])
    config = with_values(base, values, "the search space")
    directory = path_of(about["out"]) / trial_name(values)
    write_json(directory / TRIAL, {"values": values})
    objective = OBJECTIVES[about["stage"]](config, base, path_of(about["run"]), directory)
    for rung in range(len(RUNGS)):
        if not rung_file(directory, rung).exists():
            _climb(objective, rung, directory, about)
        found = read_json(rung_file(directory, rung))
        tune.report({key: value for key, value in found.items() if key != "networks"})


def _climb(objective: Objective, rung: int, directory: Path, about: dict[str, Any]) -> None:
    """Train and measure a rung; what it came to is written at once."""
    began = time.monotonic()
    trained = objective.train(rung)
    trained_at = time.monotonic()
    policies = objective.policies([tuple(h) for h in about["topologies"]], about["samples"])
    written_at = time.monotonic()
    success = ray.get(about["examiner"].success.remote(policies, about["episodes"]))
    write_json(
        rung_file(directory, rung),
        {
            "rung": rung,
            "step": trained["step"],
            "loss": trained["loss"] if math.isfinite(trained["loss"]) else None,
            "success": sum(success) / len(success),
            "networks": dict(zip((p.id for p in policies), success, strict=True)),
            "seconds": {
                "train": round(trained_at - began, 2),
                "write": round(written_at - trained_at, 2),
                "measure": round(time.monotonic() - written_at, 2),
            },
            **objective.figures(),
        },
    )
