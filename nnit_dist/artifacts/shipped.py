"""Trained models that ship with the package, so that generating needs no training.

Each is a run directory without the data that only training needs. It has the zoo, the hypernetwork,
NNiT, the results, and the manifests of all stages.
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
    """The shipped run of a task; NnitError if none is shipped."""
    if task not in _RUNS:
        raise NnitError(
            f"no trained model for {task} is shipped (only for {', '.join(_RUNS)}). Train one "
            "with `nnit run`, then name its run directory."
        )
    return RunDirectory(_PRETRAINED / _RUNS[task])
