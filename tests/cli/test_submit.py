"""Jobs on a real head node of Ray, with its token."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray.job_submission import JobStatus
from support.clusters import await_dashboard, free_ports
from support.commands import nnit

from nnit_dist.cli.submit import _follow, _package

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke.yaml"
RAY = str(Path(sys.executable).with_name("ray"))
# A run that fails as soon as it begins.
FAILS = ("--set", "continue_from=runs/none")


@pytest.fixture(scope="module")
def head():
    """A head node with a token: the environment of its users, and its dashboard."""
    place = Path(tempfile.mkdtemp(prefix="nnit-", dir="/tmp"))  # short: Ray's sockets lie there
    gcs, dashboard, agent, client = free_ports(4)
    env = os.environ | {
        "HOME": str(place / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    env.pop("RAY_AUTH_MODE", None)
    start = [RAY, "start", "--head", "--num-cpus=2", f"--port={gcs}", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--ray-client-server-port={client}", f"--temp-dir={place}", "--block"]
    process = subprocess.Popen(
        start,
        env={**env, "RAY_AUTH_MODE": "token", "NNIT_STORAGE": str(place / "runs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"
    await_dashboard(address, env["RAY_AUTH_TOKEN"])
    yield env, address
    process.terminate()
    process.wait(90)
    shutil.rmtree(place, ignore_errors=True)


def submit(head, *words, **changed) -> subprocess.CompletedProcess:
    env, address = head
    command = [sys.executable, "-m", "nnit_dist", "submit", SMOKE, "--address", address, *words]
    return subprocess.run(
        [str(word) for word in command],
        env={**env, **changed},
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
    )


def said(result: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in result.stdout + result.stderr
    return " ".join(result.stdout.split())


@pytest.mark.timeout(400)
def test_a_job_streams_its_log_and_tells_how_it_ended(head):
    result = submit(head, *FAILS)
    assert result.returncode == 1
    log, _, verdict = said(result).rpartition(": ")
    assert log.count("runs/none lacks population") == 1
    assert verdict == "FAILED"


@pytest.mark.parametrize(("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 3, 3)])
def test_the_exit_code_is_the_jobs(status, code, expected):
    async def lines(job_id):
        yield "a line\n"

    info = SimpleNamespace(status=JobStatus(status), driver_exit_code=code)
    client = SimpleNamespace(
        tail_job_logs=lines,
        get_job_status=lambda job_id: info.status,
        get_job_info=lambda job_id: info,
    )
    assert _follow(client, "job") == expected


@pytest.mark.timeout(400)
def test_who_has_no_token_is_refused_and_one_in_a_file_will_do(head):
    env, _ = head
    for token in ("", secrets.token_hex(16)):
        result = submit(head, "--no-wait", RAY_AUTH_TOKEN=token)
        assert result.returncode == 1
        assert "no cluster takes jobs at" in said(result)
        assert "Authentication" in said(result)
    file = Path(env["HOME"]) / ".ray" / "auth_token"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(env["RAY_AUTH_TOKEN"] + "\n")
    result = submit(head, "--no-wait", "--out", "/tmp/nnit-none", *FAILS, RAY_AUTH_TOKEN="")
    file.unlink()
    assert result.returncode == 0, said(result)


@pytest.mark.timeout(400)
def test_a_run_is_not_submitted_beside_itself_and_is_stopped_in_order(head):
    first = submit(head, "--no-wait")
    assert first.returncode == 0, said(first)
    second = submit(head, "--no-wait")
    assert second.returncode == 1
    assert "smoke is at work as job nnit-smoke-" in said(second)
    job = said(first).split()[1]
    for _ in range(60):  # until it is at work
        if "population" in ray_job(head, "logs", job):
            break
        time.sleep(1)
    assert "was stopped" in ray_job(head, "stop", job)
    assert "interrupted; the same command goes on" in ray_job(head, "logs", job)
    third = submit(head, "--no-wait", *FAILS)
    assert third.returncode == 0, said(third)


def ray_job(head, verb: str, job: str) -> str:
    """What `ray job VERB` prints."""
    env, address = head
    command = [RAY, "job", verb, "--address", address, job]
    env = {**env, "RAY_AUTH_MODE": "token"}
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout


@pytest.mark.fault
@pytest.mark.endurance  # 4 minutes
@pytest.mark.timeout(600)
def test_a_run_whose_driver_died_goes_on_when_it_is_submitted_again(head, tmp_path):
    """`kill -9` of the job's process; what was finished is not done again."""
    small = ["tasks=[PushCube-v1]", "population.architectures=[[16, 8]]", "evaluate.episodes=1"]
    words = [word for override in small for word in ("--set", override)]
    first = submit(head, "--no-wait", "--out", tmp_path, *words)
    assert first.returncode == 0, said(first)
    deadline = time.monotonic() + 200
    while not (tmp_path / "align" / ".key.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (driver,) = [p for p in psutil.process_iter() if _drives(p, tmp_path)]
    driver.kill()
    zoo = {path: path.stat().st_mtime_ns for path in (tmp_path / "population").rglob("*.*")}
    deadline = time.monotonic() + 60
    while "is at work" in said(second := submit(head, "--out", tmp_path, *words)):
        assert time.monotonic() < deadline
    assert second.returncode == 0, said(second)
    assert "population already done" in said(second)
    assert (tmp_path / "report" / "report.html").exists()
    assert zoo == {path: path.stat().st_mtime_ns for path in (tmp_path / "population").rglob("*.*")}


def _drives(process: psutil.Process, run: Path) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return {"-m", "nnit_dist", "run", str(run)} <= set(words)
    return False


def test_a_place_that_other_nodes_do_not_have_is_refused(head):
    result = submit(head, "--out", "runs/x")
    assert result.returncode == 1
    assert "which Ray deletes" in said(result)


@pytest.mark.parametrize(
    ("continue_from", "ships"),
    [(None, False), ("s3://bucket/run", False), ("nnit_dist/pretrained/pushcube", True)],
)
def test_models_travel_only_with_a_run_that_continues_from_them(continue_from, ships):
    with _package(SMOKE, continue_from) as directory:
        assert (directory / "configs" / "smoke.yaml").exists()
        assert (directory / "nnit_dist" / "cli" / "main.py").exists()
        assert (directory / "nnit_dist" / "pretrained").exists() == ships
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert (size > 30e6) == ships


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("http://127.0.0.1:9", False),
        ("http://localhost:9", False),
        ("http://192.168.77.77:9", True),
        ("192.168.77.77:9", True),
        ("http://[::1", True),
    ],
)
def test_a_token_that_others_could_read_on_the_way_is_warned_about(address, warned, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    # A proxy that nobody serves: the request goes no further than this machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    result = nnit("submit", SMOKE, "--address", address)
    assert result.returncode == 1
    assert "no cluster takes jobs" in result.stdout
    assert ("unencrypted" in result.stdout) == warned
