"""Nodes of `ray.cluster_utils.Cluster`."""

from contextlib import suppress
from typing import Any

import psutil

# Arguments of a head that misses a dead node after two seconds, not after fifteen.
WATCHFUL = {
    "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
}


def kill(node: Any) -> None:
    """As a machine dies: its raylet, and all processes that it has started."""
    (raylet,) = [info.process.pid for info in node.all_processes["raylet"]]
    process = psutil.Process(raylet)
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
