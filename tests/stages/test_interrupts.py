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

import pyarrow.parquet as pq
import pytest
from support.commands import ROOT, nnit_process
from support.networks import random_policy
from support.searches import search_command

from nnit_dist.core.policy import save_policies

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
NNIT = Path(sys.executable).with_name("nnit")


class Terminal:
    """A command on a terminal of its own, as a user has it."""

    def __init__(self, *command: object) -> None:
        self.master, slave = pty.openpty()

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            list(map(str, command)),
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
        # (What it prints shows that it has begun: an earlier command may have come to the file.)
        while not (list(directory.glob(pattern)) and self.read()):
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

    def interrupt(self, number: signal.Signals) -> None:
        """Press ^C or, as a scheduler does, send SIGTERM; the command ends as it should."""
        if number == signal.SIGINT:
            os.write(self.master, b"\x03")
        else:
            self.process.send_signal(number)
        assert self.wait(SOON_S) == 128 + number, self.read()
        assert "interrupted; the same command goes on" in self.read()
        assert "failed" not in self.read()
        assert "Traceback" not in self.read()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_interrupt_in_any_stage_is_obeyed_and_the_same_command_goes_on(tmp_path):
    run = tmp_path / "run"
    words = (NNIT, "run", ROOT / "configs" / "smoke.yaml", "--out", run, *SMALL)
    for pattern, number in (
        ("population/.key.json", signal.SIGINT),
        ("population/trials/*/progress.json", signal.SIGTERM),
        ("align/round-0/step-*", signal.SIGINT),
        ("align/round-0.pt", signal.SIGINT),  # simulators of DAgger start
        ("train/*/step-*", signal.SIGTERM),
        ("train/manifest.json", signal.SIGINT),  # the next stage generates
        ("generate/manifest.json", signal.SIGTERM),  # simulators of the evaluation start
        ("evaluate/manifest.json", signal.SIGINT),  # the report is drawn
    ):
        terminal = Terminal(*words)
        terminal.wait_for(run, pattern)
        terminal.interrupt(number)
    last = Terminal(*words)
    assert last.wait(300) == 0, last.read()
    assert (run / "report" / "report.html").exists()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_interrupt_in_a_search_is_obeyed_and_the_same_command_goes_on(tmp_path):
    command = search_command(tmp_path, 2)
    for pattern, number in (
        ("search/tune", signal.SIGINT),  # the first trials start
        ("search/*/rung-0*", signal.SIGTERM),
        ("search/test", signal.SIGINT),  # the best trial is measured
    ):
        terminal = Terminal(*command)
        terminal.wait_for(tmp_path, pattern)
        terminal.interrupt(number)
    last = Terminal(*command)
    assert last.wait(300) == 0, last.read()
    assert "best" in last.read()


@pytest.mark.timeout(300)
def test_an_interrupt_in_an_evaluation_keeps_its_episodes(tmp_path):
    save_policies([random_policy()], tmp_path / "policies")
    command = (NNIT, "evaluate", tmp_path / "policies", "--episodes", 2000, "--actors", 1)
    terminal = Terminal(*command)
    terminal.wait_for(tmp_path, "policies-evaluation/episodes/*.parquet")
    terminal.interrupt(signal.SIGINT)
    kept = pq.read_table(tmp_path / "policies-evaluation/episodes").num_rows
    assert 0 < kept < 2000
    last = nnit_process(*command[1:3], "--episodes", kept)  # all of them are there
    assert last.returncode == 0, last.stderr
    assert pq.read_table(tmp_path / "policies-evaluation/episodes").num_rows == kept


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_interrupt_at_any_moment_of_a_start_is_obeyed(tmp_path):
    save_policies([random_policy()], tmp_path / "policies")
    command = [NNIT, "evaluate", tmp_path / "policies", "--episodes", "9999", "--actors", "1"]
    for moment in range(1, 13):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.7 * moment)
        number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
        process.send_signal(number)
        _, complaints = process.communicate(timeout=SOON_S)
        assert (process.returncode, complaints) == (128 + number, b""), 0.7 * moment


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


def test_an_interrupt_that_python_ignores_in_a_callback_is_raised_again():
    script = """
import time
from nnit_dist.runtime.interrupts import handle_interrupts, interrupt_code
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
handle_interrupts(enable=True)
Slow()
print("ignored", flush=True)
Slow()
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("obeyed", interrupt_code(), flush=True)
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"ignored\nready\nobeyed {128 + number}\n"
        assert process.wait(20) == 0


def test_an_interrupt_while_the_command_loads_ends_it_without_a_traceback():
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([NNIT, "keys"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        maps = Path(f"/proc/{process.pid}/maps")
        while "select.cpython" not in maps.read_text():  # its first imports
            assert process.poll() is None
        process.send_signal(number)
        assert process.communicate() == (b"", b"")
        assert process.returncode == 128 + number


def test_a_program_that_does_not_stop_is_ended_whatever_becomes_of_its_output():
    script = """
import time
from nnit_dist.runtime import interrupts
interrupts.STOP_S = 1.0
interrupts.handle_interrupts(enable=True)
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except (KeyboardInterrupt, OSError):
        pass
"""
    for closed in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        if closed:
            process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_library_leaves_the_handlers_of_its_program():
    code = (
        "import signal; from nnit_dist.runtime.interrupts import handle_interrupts; "
        "before = signal.getsignal(signal.SIGINT); handle_interrupts(); "
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
