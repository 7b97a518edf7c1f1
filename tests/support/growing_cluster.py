"""Runs the pool on a cluster that grows from a head without CPUs, by Ray's autoscaler, and a second
driver of the same run beside it.

Nodes are processes of this machine (Ray's own provider for tests). Prints what it had.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from support.clusters import free_ports
from support.pools import episodes_of, jobs, new_pool

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout import pool as pools
from nnit_dist.runtime import ray_session as session
from nnit_dist.runtime.ray_session import ray_session

RUN = Path("/shared/runs/x")
RAY = Path(sys.executable).with_name("ray")
NOTHING = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
    "rsync_filter",
)  # fmt: skip


def config(port: int) -> dict:
    """A head for the driver alone, and up to two nodes of one CPU each."""
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 2,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "disable_node_updaters": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "simulation": {
                "resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2,
            },
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in NOTHING},
    }  # fmt: skip


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="nnit-", dir="/tmp"))
    (port,) = free_ports(1)
    (place / "cluster.json").write_text(json.dumps(config(port)))
    env = os.environ | {
        "HOME": str(place),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    command = [RAY, "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={place}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={place / 'cluster.json'}"]
    faked = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with (place / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*command, "--block"],
            env=env | faked | {"RAY_enable_autoscaler_v2": "0"},
            stdout=log,
            stderr=log,
        )
    try:
        subprocess.run([sys.executable, "-W", "ignore", __file__, str(port)], env=env, check=True)
    finally:
        head.terminate()
        head.wait(60)
        for process in psutil.process_iter():  # nodes that the autoscaler has started outlive it
            with suppress(psutil.Error):
                if any(str(place) in word for word in process.cmdline()):
                    process.kill()
        shutil.rmtree(place, ignore_errors=True)


def drive(port: str) -> None:
    pools.NODE_S = 1.0  # nodes come at once here, and there is little to do
    while socket.socket().connect_ex(("127.0.0.1", int(port))):
        time.sleep(0.5)
    until, alive = time.monotonic() + 150, []
    command = [sys.executable, "-W", "ignore", __file__, port, "second"]
    with ray_session(f"127.0.0.1:{port}", claim=RUN):
        second = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with new_pool(actors=None) as pool:
            alive.append(pool.alive)
            outcomes = list(pool.run(jobs()))
            while alive[-1] < 2 and time.monotonic() < until:
                list(pool.run(jobs(episodes=50)))
                alive.append(pool.alive)
    with ray_session(f"127.0.0.1:{port}", claim=RUN):
        pass  # it is free again
    episodes = [
        [policy, seed, *(value.item() for value in figures)]
        for (policy, seed), figures in episodes_of(outcomes).items()
    ]
    print(json.dumps({"alive": alive, "episodes": episodes, "second": second}))


def drive_too(port: str) -> None:
    session._CLAIM_S = 1.0
    try:
        with ray_session(f"127.0.0.1:{port}", claim=RUN):
            print("it has two drivers")
    except NnitError as error:
        print(error)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case [port]:
            drive(port)
        case [port, "second"]:
            drive_too(port)
