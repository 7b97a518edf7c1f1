"""What a bench measures, and what it leaves behind: figures as JSON, a page to read, a picture."""

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
    """How much a bench measures: topologies a kind, networks a topology, episodes a network."""

    topologies: int
    samples: int
    episodes: int


class MeasuredHere(TypedDict):
    """When and on what machine figures were measured."""

    date: str
    machine: str


def measured_here() -> MeasuredHere:
    """The date, and what machine this is."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write_results(
    out: Path, name: str, figures: Mapping[str, object], *, text: str, plot: Figure
) -> None:
    """Write `out/NAME.json`, `.md` and `.png`."""
    write_json(out / f"{name}.json", figures)
    write_atomic(out / f"{name}.md", lambda partial: partial.write_text(text))
    plot.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
