"""^C on a terminal and SIGTERM end every stage soon, with what is done kept."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.commands import ROOT

SMALL = [
    f"--set={override}"
    for override in (
        "tasks=[PushCube-v1]",
        "ray.actors=1",
        "population.recipe.env_steps=1024",
        "population.recipe.batch=512",
        "population.recipe.eval_every=512",
        "population.recipe.eval_episodes=1",
    )
]
SOON_S = 30.0


class Terminal:
    """A command on a terminal of its own, as a user has it."""

    def __init__(self, *words: object) -> None:
        self.master, slave = pty.openpty()

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        nnit = str(Path(sys.executable).with_name("nnit"))
        self.process = subprocess.Popen(
            [nnit, *map(str, words)],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=own_terminal,
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.printed = b""

    def read(self) -> str:
        try:
            while data := os.read(self.master, 65536):
                self.printed += data
        except OSError:
            pass
        return self.printed.decode(errors="replace")

    def wait_for(self, directory: Path, pattern: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not list(directory.glob(pattern)):
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < deadline, self.read()
            self.read()
            time.sleep(0.2)

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.read()}"
            self.read()
            time.sleep(0.1)
        return self.process.returncode

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_interrupt_in_any_stage_is_obeyed_and_the_same_command_goes_on(tmp_path):
    run = tmp_path / "run"
    words = ("run", ROOT / "configs" / "smoke.yaml", "--out", run, *SMALL)
    for pattern, number in (
        ("population/.key.json", signal.SIGINT),
        ("population/trials/*/progress.json", signal.SIGTERM),
        ("align/round-0/step-*", signal.SIGINT),
        ("align/round-0.pt", signal.SIGINT),  # simulators of DAgger start
        ("generate/manifest.json", signal.SIGTERM),  # those of the evaluation
    ):
        terminal = Terminal(*words)
        terminal.wait_for(run, pattern)
        if number == signal.SIGINT:
            terminal.press_ctrl_c()
        else:
            terminal.process.send_signal(number)
        assert terminal.wait(SOON_S) == 128 + number, terminal.read()
        assert "interrupted; the same command goes on" in terminal.read()
        assert "failed" not in terminal.read()
        assert "Traceback" not in terminal.read()
    last = Terminal(*words)
    assert last.wait(300) == 0, last.read()
    assert (run / "report" / "report.html").exists()


def test_a_second_interrupt_ends_at_once(tmp_path):
    """While the first one is still being obeyed."""
    script = """
import sys, time
from nnit_dist.runtime.interrupts import handle_interrupts, interrupt_code
handle_interrupts(enable=True)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopping", interrupt_code(), flush=True)
    time.sleep(60)
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"stopping {128 + number}\n"
        process.send_signal(number)
        assert process.wait(5) == 128 + number


def test_a_library_leaves_the_handlers_of_its_program():
    code = (
        "import signal; from nnit_dist.runtime.interrupts import handle_interrupts; "
        "before = signal.getsignal(signal.SIGINT); handle_interrupts(); "
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
