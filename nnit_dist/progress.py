"""The live view of a stage: bars with time left on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False)
PLAIN_EVERY_S = 30.0


class StageProgress:
    """Bars by name. On a pipe or in a log file: a line every half minute instead."""

    def __init__(self, stage: str, unit: str) -> None:
        self.stage, self.unit = stage, unit
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=120,
        )

    def __enter__(self) -> "StageProgress":
        self._progress.start()
        return self

    def __exit__(self, *exc) -> None:
        self._progress.stop()

    def add(self, name: str, total: int, completed: int = 0) -> None:
        self._bars[name] = self._progress.add_task(name, total=total, completed=completed, note="")

    def update(self, name: str, completed: int, note: str = "") -> None:
        self._progress.update(self._bars[name], completed=completed, note=note)
        if not console.is_terminal and time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            total = self._progress.tasks[self._bars[name]].total
            console.print(f"  {self.stage}: {name} {completed}/{total:.0f} {self.unit}  {note}")

    def finish(self, name: str) -> None:
        """Mark as complete, also when it ended before its budget."""
        task = self._progress.tasks[self._bars[name]]
        self._progress.update(self._bars[name], total=max(task.completed, 1))
