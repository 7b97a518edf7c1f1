"""What a user sees of a running stage: progress and time left, without output of libraries."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import count, short_time


class PlainConsole(Console):
    """A console that shows text as it is: no markup, and no control characters but line ends.

    Names, reasons and paths come from files and libraries, so a `[red]` in them is text, and an
    escape code does not reach the terminal. `styled` gives text a style.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a string that is printed, or is in a table."""
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    """The text with control characters, but line ends and tabs, written as `\\x1b`."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of plain strings and of (string, style) pairs."""
    return Text.assemble(
        *(printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts)
    )


# In a file or a pipe, tables are as wide as they need to be.
console = PlainConsole(
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else 140,
)
PLAIN_EVERY_S = 30.0  # between two lines of progress where there is no terminal


@contextlib.contextmanager
def quiet_libraries(log: Path) -> Iterator[None]:
    """Append what libraries print (Ray, SAPIEN, ManiSkill) to `log`; `console` still prints.

    This redirects file descriptors, since Ray's C++ code and its threads do not use `sys.stdout`.

    Raises:
        NnitError: the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("ab")
    except OSError as error:
        raise NnitError(
            f"cannot write in {log.parent}: {error.strerror or error}. Name another directory with "
            "--out."
        ) from None
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    with opened as file, os.fdopen(out, "w", errors="replace") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        console.file = terminal
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            console.file = None  # type: ignore[assignment]  # the current sys.stdout
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.close(err)


def _expected(task: Task) -> float | None:
    """Seconds left as the stage itself expects them, else by the speed of the last two minutes."""
    seconds_left = task.fields["seconds_left"]
    return task.time_remaining if seconds_left is None else seconds_left


class _LeftColumn(ProgressColumn):
    """Time left, as 0:01:30."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = None if task.finished else _expected(task)
        text = "-:--:--" if left is None else str(timedelta(seconds=round(left)))
        return Text(text, style="progress.remaining")


class StageProgress:
    """Progress bars by name. Where there is no terminal, a line every half minute instead.

    `unit` is what the bars count, such as `steps`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            _LeftColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=120,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> "StageProgress":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def add(self, name: str, total: int, completed: int = 0) -> None:
        """Add a bar."""
        self._bars[name] = self._progress.add_task(
            name, total=total, completed=completed, note="", seconds_left=None
        )

    def update(
        self, name: str, completed: int, note: str = "", seconds_left: float | None = None
    ) -> None:
        """Move a bar. `seconds_left` is the stage's own estimate, if it has one."""
        self._progress.update(
            self._bars[name], completed=completed, note=note, seconds_left=seconds_left
        )
        if not console.is_terminal and time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            task = self._task(name)
            expected = _expected(task)
            left = f"{short_time(expected)} left" if expected else ""
            done = f"{count(completed)} of {count(task.total or 0)} {self.unit}"
            console.print(f"  {name}  {done}  {left}  {note}")

    def watch(self, name: str, done: int, total: int) -> None:
        """Move a bar; the first call adds it."""
        if name not in self._bars:
            self.add(name, total)
        self.update(name, done)

    def resize(self, name: str, total: int) -> None:
        """Change the total of a bar, for instance because some of the work is not needed."""
        self._progress.update(self._bars[name], total=total)

    def remove(self, name: str, note: str) -> None:
        """Replace a bar by a line, so that of hundreds only the running ones are shown."""
        console.print(styled("  ", ("✓", "green"), f" {name}  {note}"))
        self._progress.remove_task(self._bars.pop(name))

    def _task(self, name: str) -> Task:
        return next(task for task in self._progress.tasks if task.id == self._bars[name])
