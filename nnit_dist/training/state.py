"""What a training leaves on disk: its metrics, and the state from which it goes on."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from nnit_dist.core.files import write_atomic


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file by step; of a step that was repeated after a crash, the last."""
    if not path.exists():
        return []
    rows: dict[float, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that a killed process left half-written
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def load_state(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote of tensors and numbers, on the CPU; no pickled objects."""
    with path.open("rb") as file:
        return torch.load(file, weights_only=True, map_location="cpu")


def save_state(state: dict[str, Any], step: int, path: Path) -> None:
    """Everything with which a training goes on from `step`, as one file."""
    kept = {name: part.state_dict() for name, part in state.items()}
    write_atomic(path, lambda partial: torch.save({"step": step, **kept}, partial))


def restore_state(state: dict[str, Any], path: Path) -> int:
    """Take over what `save_state` wrote; returns the step to go on from."""
    saved = load_state(path)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def steps_logged(path: Path) -> int:
    """How far a training with this metrics file has come."""
    rows = read_metrics(path)
    return int(rows[-1]["step"]) if rows else 0
