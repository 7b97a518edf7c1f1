"""Runs the pool on a Ray cluster of two nodes on this machine, one of which fails.

`lost`: its raylet is killed in the middle. `broken`: SAPIEN cannot be imported there. `training`:
nor there, and it is labeled to have its cores for training. `joins`: it comes in the middle.
`full`: the driver holds more in the object store than it has room for.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from support.nodes import WATCHFUL, kill
from support.pools import episodes_of, jobs, new_pool

from nnit_dist.runtime.progress import console

ROOM = 80 << 20  # bytes of a full object store; it has no fewer


def main(fault: str) -> None:
    here = str(Path(__file__).parents[1])
    room = {"object_store_memory": ROOM} if fault == "full" else {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **WATCHFUL, **room})
    path = here
    if fault in ("broken", "training"):
        broken = Path(tempfile.mkdtemp()) / "sapien"
        broken.mkdir()
        (broken / "__init__.py").write_text("raise ImportError('libsapien.so is missing')\n")
        path = f"{broken.parent}:{here}"
    labels = {"nnit.dev/role": "training"} if fault == "training" else {}

    def join() -> Any:
        return cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path}, labels=labels, **room)

    second = join() if fault != "joins" else None
    ray.init(address=cluster.address, log_to_driver=False)
    held = [ray.put(np.ones(ROOM // 32)) for _ in range(8)] if fault == "full" else []  # twice that
    output, outcomes = io.StringIO(), []
    console.file = output
    alive = 0
    with new_pool(actors=None if fault == "joins" else 2) as pool:
        if fault == "lost":
            pool.await_simulators(2)
        nodes = len(ray.nodes())
        rooms = [node["Resources"]["object_store_memory"] for node in ray.nodes()]
        for outcome in pool.run(jobs(episodes=150 if fault == "joins" else 4)):
            if fault == "joins" and second is None:
                second = join()
            alive = max(alive, pool.alive)
            if fault == "lost" and not outcomes:
                kill(second)
            outcomes.append(outcome)
        replaced = pool.replaced
    episodes = [
        [policy, seed, *(value.item() for value in figures)]
        for (policy, seed), figures in episodes_of(outcomes).items()
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ray.shutdown()
        cluster.shutdown()
    found = {"episodes": episodes, "replaced": replaced, "nodes": nodes, "alive": alive}
    found["room"] = max(rooms)
    found["held"] = 8 * ROOM // 4 if held else 0  # bytes
    print(json.dumps(found | {"output": output.getvalue()}))


if __name__ == "__main__":
    main(sys.argv[1])
