"""The `nnit` command, in this process or in one of its own."""

import contextlib
import io
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from nnit_dist.cli.main import main

ROOT = Path(__file__).parents[2]


def nnit(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run the command's own `main` here: what it imports, and Ray, have started already."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        contextlib.chdir(cwd),
        patch.object(sys, "argv", ["nnit", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def nnit_process(
    *words: object, timeout: float = 300, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run the installed command, as a user types it."""
    command = [str(Path(sys.executable).parent / "nnit"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd)
