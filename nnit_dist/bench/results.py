"""What all benchmarks share: their size, the machine, and files of results."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure

from nnit_dist.core.files import write_atomic, write_json


@dataclass(frozen=True)
class BenchSize:
    """How much is measured: topologies per kind, networks per topology, episodes per network."""

    topologies: int
    samples: int
    episodes: int


class MeasuredHere(TypedDict):
    """When and on what machine figures were measured."""

    date: str
    machine: str


def measured_here() -> MeasuredHere:
    """Today's date, and the architecture and cores of this machine."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write_results(
    out: Path, name: str, figures: Mapping[str, object], *, text: str, plot: Figure
) -> None:
    """Write the figures, the text and the plot as `out/NAME.json`, `.md` and `.png`."""
    write_json(out / f"{name}.json", figures)
    write_atomic(out / f"{name}.md", lambda partial: partial.write_text(text))
    plot.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
