"""Trained models that ship with the package, so that generating needs no training.

Each is a run directory without what only training needs: the zoo, the hypernetwork, NNiT, the
measured results, and every stage's manifest.
"""

from pathlib import Path

from nnit_dist.core.errors import NnitError

_HERE = Path(__file__).resolve().parent.parent / "pretrained"
_SHIPPED = {
    "PushCube-v1": "pushcube",
    "PullCube-v1": "tabletop",
    "LiftPegUpright-v1": "tabletop",
    "PickCube-v1": "tabletop",
}


def shipped(task: str) -> Path:
    """The run directory that is shipped for a task; NnitError if there is none."""
    if task not in _SHIPPED:
        raise NnitError(
            f"no trained model for {task} is shipped (only {', '.join(_SHIPPED)}). Train one "
            "with `nnit run`, then name its run directory."
        )
    return _HERE / _SHIPPED[task]
