"""The NNiT stage (training) and the generate stage (writing policy files)."""

from dataclasses import dataclass
from pathlib import Path

from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.worker import nnit_worker
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import fit

MODEL = "nnit.safetensors"
BAR = "nnit"


@dataclass(frozen=True)
class TrainSegment:
    """A part of a training, up to `until` steps; the same name goes on where it was.

    It begins with the model `continue_from`, or goes on from the `state` that the leg before left.
    """

    name: str
    until: int
    continue_from: Path | None = None
    start_from: Path | None = None
    state: Path | None = None


def train_segment(
    config: NNiTConfig,
    ghn: Path,
    out: Path,
    placement: Placement,
    seed: int,
    segment: TrainSegment,
    view: StageProgress,
) -> None:
    """Train a leg under Ray Train, and write the model as it is then to `out`."""
    files = {
        "continue_from": segment.continue_from,
        "start_from": segment.start_from,
        "state": segment.state,
    }
    fit(
        nnit_worker,
        {
            "nnit": config.model_dump(),
            "ghn": str(ghn.absolute()),
            "result": str((out / MODEL).absolute()),
            "until": segment.until,
            "seed": seed,
        }
        | {name: str(path.absolute()) for name, path in files.items() if path},
        out,
        segment.name,
        (view, BAR),
        placement,
    )
