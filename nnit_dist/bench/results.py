"""What a bench leaves behind: figures as JSON, a page to read, a picture."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnit_dist.core.files import write_atomic, write_json


def measured_here() -> dict[str, str]:
    """The date, and what machine this is."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write_results(out: Path, name: str, figures: dict[str, Any], text: str, plot: Figure) -> None:
    """Write `out/NAME.json`, `.md` and `.png`."""
    write_json(out / f"{name}.json", figures)
    write_atomic(out / f"{name}.md", lambda partial: partial.write_text(text))
    plot.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
