"""Trained models that ship with the package, so that generating needs no training.

Each is a run directory without what only training needs: the zoo, the hypernetwork, NNiT, the
measured results, and every stage's manifest.
"""

from pathlib import Path

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.errors import NnitError

_PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
_RUNS = {
    "PushCube-v1": "pushcube",
    "PullCube-v1": "tabletop",
    "LiftPegUpright-v1": "tabletop",
    "PickCube-v1": "tabletop",
}


def shipped(task: str) -> RunDirectory:
    """The run that ships for a task; NnitError if there is none."""
    if task not in _RUNS:
        raise NnitError(
            f"no trained model for {task} is shipped (only {', '.join(_RUNS)}). Train one "
            "with `nnit run`, then name its run directory."
        )
    return RunDirectory(_PRETRAINED / _RUNS[task])
