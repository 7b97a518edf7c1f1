"""Asks, from a worker of a local Ray, for an actor as Ray Train does for its controller.

Meanwhile another Ray, with a dashboard, runs on this machine. Prints what came of it.
"""

import subprocess
import sys

import ray
from ray.cluster_utils import Cluster
from ray.util.state import get_actor

from nnit_dist.runtime.ray_session import ray_session


def another() -> None:
    """Another Ray until standard input ends."""
    args = {"num_cpus": 1, "include_dashboard": True}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    print("started", flush=True)
    sys.stdin.read()
    cluster.shutdown()


@ray.remote
def ask() -> str:
    try:
        return f"found {get_actor('00' * 16, timeout=10)}"
    except ray.util.state.exception.RayStateApiException:
        return "nobody answers"


def main() -> None:
    command = [sys.executable, __file__, "another"]
    with (
        ray_session(num_cpus=1),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdin and other.stdout
        while b"started" not in other.stdout.readline():
            assert other.poll() is None
        print(ray.get(ask.remote()))
        other.stdin.close()


if __name__ == "__main__":
    another() if sys.argv[1:] else main()
