"""`ray up cluster/local.yaml` for real: three hosts on this machine, a job on them, `ray down`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from support.clusters import await_dashboard, free_ports
from support.own_hosts import missing, own_hosts

ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parent.parent
MISSING = missing()
# The smallest chain, whose three training workers need a host each.
SMALL = (
    "tasks=[PushCube-v1]",
    "population.recipe.env_steps=2048",
    "training.workers=3",
    "training.cpus=2",
)


@pytest.fixture
def place():
    """A directory with a short name (Ray's sockets have long ones) that all hosts share."""
    path = Path(tempfile.mkdtemp(prefix="nnit-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def filled_in(place: Path, hosts, key: Path) -> Path:
    """The file as its user fills it in; the hosts share this environment instead of an own one."""
    text = (ROOT / "cluster" / "local.yaml").read_text()
    config = yaml.safe_load(text.replace("/shared/nnit/runs", str(place / "runs")))
    head, *workers = [host.address for host in hosts]
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    protects, *_, finds_ray = config["setup_commands"]
    config["setup_commands"] = [protects, f"ln -sfn {VENV} ~/nnit_venv", finds_ray]
    path = place / "local.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(*command, env, timeout=600) -> subprocess.CompletedProcess:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def nodes_of(what: str, address: str, token: str) -> set[str]:
    """The nodes that `what`, actors or living nodes, are on, as the dashboard tells."""
    request = urllib.request.Request(
        f"{address}/api/v0/{what}?limit=1000&detail=1", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        rows = json.load(answer)["data"]["result"]["result"]
    return {row["node_id"] for row in rows if what == "actors" or row["state"] == "ALIVE"} - {None}


def await_nodes(count: int, address: str, token: str) -> None:
    for _ in range(90):
        if len(nodes_of("nodes", address, token)) == count:
            return
        time.sleep(2)
    raise TimeoutError(f"{count} nodes have not come up")


@pytest.mark.long
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.timeout(900)
def test_ray_up_job_submit_and_ray_down_on_hosts_of_this_machine(place):
    (place / "home").mkdir()
    env = os.environ | {
        "HOME": str(place / "home"),
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    env = {k: v for k, v in env.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    assert run("ray", "get-auth-token", "--generate", env=env).returncode == 0
    token = (place / "home/.ray/auth_token").read_text().strip()
    with own_hosts(3, place) as (hosts, key):
        cluster = filled_in(place, hosts, key)
        up = run("ray", "up", "-y", "--no-config-cache", cluster, env=env)
        assert up.returncode == 0, up.stdout + up.stderr
        (port,) = free_ports(1)
        tunnel = subprocess.Popen(
            ["ray", "dashboard", str(cluster), "--port", str(port), "--no-config-cache"],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            await_dashboard(address, token)
            await_nodes(3, address, token)
            words = ["python", "-m", "nnit_dist", "run", "configs/smoke.yaml"]
            for override in ("ray.address=auto", *SMALL):
                words += ["--set", override]
            submit = ("ray", "job", "submit", "--address", address, "--working-dir", ".", "--")
            job = run(*submit, *words, env=env)
            assert job.returncode == 0, job.stdout + job.stderr
            assert len(nodes_of("actors", address, token)) == 3
        finally:
            os.killpg(tunnel.pid, 15)
            tunnel.wait(30)
        assert (place / "runs/smoke/report/report.html").is_file()
        down = run("ray", "down", "-y", cluster, env=env)
        assert down.returncode == 0, down.stdout + down.stderr
        for _ in range(90):  # workers end when they have missed their head for a while
            left = {host.namespace: host.commands() for host in hosts}
            if not any(left.values()):
                break
            time.sleep(2)
        assert not any(left.values()), left
