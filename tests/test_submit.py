"""Jobs on a real head node of Ray, with its token."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node with a token: the environment of its users, and its dashboard."""
    home = tmp_path_factory.mktemp("head")
    gcs, dashboard, agent, client = free_ports(4)
    env = os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "NNIT_STORAGE": str(home / "runs"),
        "RAY_TMPDIR": "/tmp/nnit-head",
    }
    shutil.rmtree("/tmp/nnit-head", ignore_errors=True)  # a short path: Ray's sockets lie there
    ray = Path(sys.executable).with_name("ray")
    start = [ray, "start", "--head", "--num-cpus=2", f"--port={gcs}", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--ray-client-server-port={client}", "--temp-dir=/tmp/nnit-head", "--block"]
    process = subprocess.Popen(start, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield env, f"http://127.0.0.1:{dashboard}"
    process.terminate()
    process.wait(90)
    shutil.rmtree("/tmp/nnit-head", ignore_errors=True)


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


@pytest.mark.timeout(400)
def test_a_job_streams_its_log_and_gives_its_exit_code(head):
    result = wait_for_head(head)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "runs/none lacks population" in " ".join(result.stdout.split())
    assert "FAILED" in result.stdout


def wait_for_head(head) -> subprocess.CompletedProcess:
    """The first submission that is not refused for want of a dashboard."""
    for _ in range(20):
        result = submit(head, "--set", "continue_from=runs/none")
        if "no cluster takes jobs" not in result.stdout:
            return result
    return result


@pytest.mark.timeout(400)
def test_who_has_no_token_is_refused(head):
    wait_for_head(head)
    for token in ("", secrets.token_hex(16)):
        result = submit(head, "--no-wait", RAY_AUTH_TOKEN=token)
        assert result.returncode == 1
        assert "no cluster takes jobs at" in " ".join(result.stdout.split())
        assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.timeout(400)
def test_a_run_is_not_submitted_beside_itself(head):
    wait_for_head(head)
    first = submit(head, "--no-wait")
    assert first.returncode == 0, first.stdout
    second = submit(head, "--no-wait")
    assert second.returncode == 1
    assert "is at work as job nnit-smoke-" in " ".join(second.stdout.split())
    other = submit(head, "--no-wait", "--out", "elsewhere", "--set", "continue_from=runs/none")
    assert other.returncode == 0
    env, address = head
    job = first.stdout.split()[1].rstrip(";")
    stop = [Path(sys.executable).with_name("ray"), "job", "stop", "--address", address, job]
    assert "was stopped" in subprocess.run(stop, env=env, capture_output=True, text=True).stdout
