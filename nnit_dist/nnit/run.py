"""The NNiT stage (training) and the generate stage (writing policy files)."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnit_dist.errors import NnitError
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.studies import study_size, write_studies
from nnit_dist.nnit.train import NNiTConfig, nnit_worker
from nnit_dist.policy import SUFFIX, save_policy
from nnit_dist.progress import StageProgress
from nnit_dist.topology import Hidden
from nnit_dist.training import METRICS, Placement, fit, read_metrics, steps_logged

MODEL = "nnit.safetensors"
BAR = "nnit"


@dataclass(frozen=True)
class Leg:
    """A part of a training, up to `until` steps; the same name goes on where it was.

    It begins with the model `continue_from`, or goes on from the `state` that the leg before left.
    """

    name: str
    until: int
    continue_from: Path | None = None
    start_from: Path | None = None
    state: Path | None = None


def run_nnit(
    config: NNiTConfig,
    ghn: Path,
    out: Path,
    placement: Placement,
    seed: int,
    continue_from: Path | None = None,
) -> dict[str, Any]:
    """Train the transformer on the aligned samplers of all tasks; returns the stage's figures.

    Reads the hypernetwork `ghn`, and the model to begin with, if any. Writes
    `out/nnit.safetensors` and `out/metrics.jsonl`.
    """
    with StageProgress("steps") as view:
        view.add(BAR, config.steps, steps_logged(out / METRICS))
        leg = Leg("train", config.steps, continue_from)
        train_leg(config, ghn, out, placement, seed, leg, view)
    rows = read_metrics(out / METRICS)
    return {
        "steps": config.steps,
        "flow_loss": rows[-1]["flow"],
        "parameters": NNiTModel.load(out / MODEL).parameters,
    }


def train_leg(
    config: NNiTConfig,
    ghn: Path,
    out: Path,
    placement: Placement,
    seed: int,
    leg: Leg,
    view: StageProgress,
) -> None:
    """Train a leg under Ray Train, and write the model as it is then to `out`."""
    files = {"continue_from": leg.continue_from, "start_from": leg.start_from, "state": leg.state}
    fit(
        nnit_worker,
        {
            "nnit": config.model_dump(),
            "ghn": str(ghn.absolute()),
            "result": str((out / MODEL).absolute()),
            "until": leg.until,
            "seed": seed,
        }
        | {name: str(path.absolute()) for name, path in files.items() if path},
        out,
        leg.name,
        (view, BAR),
        placement,
    )


def generate_policies(
    model: NNiTModel,
    topologies: list[Hidden],
    samples: int,
    out: Path,
    seed: int,
    steps: int,
    success: float | None = None,
    guidance: float = 0.0,
) -> dict[str, Any]:
    """Write `samples` policy files of every topology into `out`; returns figures.

    File names carry topology, seed and sample, so the same call writes the same files.
    `success` and `guidance` as in `NNiTModel.generate`.
    """
    written, spent = 0, 0.0
    with StageProgress("networks") as view:
        view.add("generate", total=len(topologies) * samples)
        for hidden in topologies:
            began = time.perf_counter()
            policies = model.generate(
                hidden, samples, seed, steps, success=success, guidance=guidance
            )
            spent += time.perf_counter() - began
            for policy in policies:
                save_policy(policy, out / f"{policy.id}{SUFFIX}")
            written += len(policies)
            view.update("generate", written)
    return {"networks": written, "milliseconds_a_network": round(1e3 * spent / max(written, 1), 2)}


def generate_studies(model: NNiTModel, topologies: list[Hidden], out: Path, seed: int) -> int:
    """Write the networks of the studies (`studies.py`) below `out`; returns how many."""
    with StageProgress("networks") as view:
        view.add("studies", total=study_size(topologies))
        return write_studies(
            model, topologies, out, seed, lambda count: view.update("studies", count)
        )


def draw_topologies(
    model: NNiTModel, count: int, seed: int, success: float | None = None
) -> list[Hidden]:
    """`count` architectures that the model itself proposes, of those that have `success`."""
    drawn: list[Hidden] = []
    for attempt in range(20):
        drawn += model.draw_architectures(count, seed + 1_000_003 * attempt, success)
        if len(drawn) >= count:
            return drawn[:count]
    raise NnitError("the model draws no valid architectures; it is not trained far enough.")
