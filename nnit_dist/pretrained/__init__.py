"""Trained models that ship with the package, so that generating needs no training.

Each directory is a run directory without what only training needs: the zoo, the
hypernetwork, NNiT, the measured results, and every stage's manifest.
"""

from pathlib import Path

from nnit_dist.errors import NnitError
from nnit_dist.nnit.model import NNiTModel

_HERE = Path(__file__).resolve().parent
_SHIPPED = {
    "PushCube-v1": "pushcube",
    "PullCube-v1": "tabletop",
    "LiftPegUpright-v1": "tabletop",
    "PickCube-v1": "tabletop",
}


def load_model(task: str, path: Path | None = None) -> NNiTModel:
    """The NNiT of a task: a model file, that of a run directory, or the shipped one.

    Raises:
        NnitError: there is no model there, or it writes policies for another task.
    """
    if path is None:
        path = shipped(task)
    if path.is_dir():
        path = path / "train" / "nnit.safetensors"
    return NNiTModel.load(path).of_task(task)


def shipped(task: str) -> Path:
    """The run directory that is shipped for a task; NnitError if there is none."""
    if task not in _SHIPPED:
        raise NnitError(
            f"no trained model for {task} is shipped (only {', '.join(_SHIPPED)}). Train one "
            "with `nnit run`, then name its run directory."
        )
    return _HERE / _SHIPPED[task]
