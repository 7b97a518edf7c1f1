"""The generate stage: policy files of every topology that is measured."""

import time
from pathlib import Path
from typing import Any

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import SUFFIX, save_policy
from nnit_dist.core.topology import Hidden
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.studies import study_size, write_studies


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
