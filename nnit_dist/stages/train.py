"""The train stage: NNiT on the networks of a hypernetwork."""

from pathlib import Path
from typing import Any

from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import BAR, MODEL, TrainSegment, train_segment
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.state import METRICS, read_metrics, steps_logged


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
        segment = TrainSegment("train", config.steps, continue_from)
        train_segment(config, ghn, out, placement, seed, segment, view)
    rows = read_metrics(out / METRICS)
    return {
        "steps": config.steps,
        "flow_loss": rows[-1]["flow"],
        "parameters": NNiTModel.load(out / MODEL).parameters,
    }
