"""Files of a training: its metrics, and the state from which it is resumed."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from nnit_dist.core.files import write_atomic


class Stateful(Protocol):
    """A part of a training that can be saved: a module, an optimizer, or alike."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and numbers to save."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Restore what `state_dict` returned."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file by step; none if there is no file.

    A step that was repeated after a crash has only its last row.
    """
    if not path.exists():
        return []
    rows: dict[float, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a killed process may leave half a line
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def load_state(path: Path) -> Mapping[str, Any]:
    """Tensors and numbers that `torch.save` wrote, on the CPU. Pickled objects are refused."""
    with path.open("rb") as file:
        return torch.load(file, weights_only=True, map_location="cpu")


def save_state(state: Mapping[str, Stateful], step: int, path: Path) -> None:
    """Write all parts of a training and the step to go on from to a file.

    Raises:
        NnitError: the file cannot be written.
    """
    kept = {name: part.state_dict() for name, part in state.items()}
    write_atomic(path, lambda partial: torch.save({"step": step, **kept}, partial))


def restore_state(state: Mapping[str, Stateful], path: Path) -> int:
    """Restore all parts from a file of `save_state`; returns the step to go on from."""
    saved = load_state(path)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def steps_logged(path: Path) -> int:
    """The last step in a metrics file; 0 if there is none."""
    rows = read_metrics(path)
    return int(rows[-1]["step"]) if rows else 0
