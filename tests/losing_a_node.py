"""A Ray cluster of two nodes with a CPU each, one of which is killed in the middle of a stage.

`training`: two workers, with fewer allowed. `population`: three trials, two at a time.
"""

import contextlib
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from nodes import kill
from ray.cluster_utils import Cluster

from nnit_dist.envs.tasks import DEFAULT_CONTROL_MODE
from nnit_dist.population.run import PopulationConfig, run_population
from nnit_dist.progress import StageProgress
from nnit_dist.training import (
    METRICS,
    Loop,
    Placement,
    average_gradients,
    fit,
    read_metrics,
    worker_setup,
)
from nnit_dist.zoo import Zoo

TOTAL, FATAL = 40, 12  # steps, and the one after which a node is killed


class Sum(torch.nn.Module):
    """The sum of all steps so far: wrong if one is left out or taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(1))


def worker(config: dict) -> None:
    _, _, workers = worker_setup()
    total = Sum()

    def descend(step: int, number: int) -> dict[str, float]:
        time.sleep(0.1)
        meter = torch.nn.Parameter(torch.zeros(1))
        meter.grad = torch.full((1,), float(number))
        average_gradients([meter])
        total.value += meter.grad
        return {"sum": float(total.value), "workers": workers}

    Loop({"total": total}, config, log_every=1, save_every=4).run(TOTAL, lambda n: n, descend)


def training(out: Path, kill_when: Callable) -> dict:
    kill_when(lambda: (rows := read_metrics(out / METRICS)) and rows[-1]["step"] >= FATAL)
    with StageProgress("") as view:
        view.add("steps", TOTAL)
        placement = Placement(workers=2, min_workers=1, cpus=1)
        fit(worker, {}, out, "train", (view, "steps"), placement)
    rows = read_metrics(out / METRICS)
    return {
        "total": TOTAL,
        "steps": [int(row["step"]) for row in rows],
        "sums": [row["sum"] for row in rows],
        "workers": [int(row["workers"]) for row in rows],
    }


def population(out: Path, kill_when: Callable) -> dict:
    config = PopulationConfig(
        architectures=[[8], [16], [8, 8]],
        recipe={
            "env_steps": 4096,
            "batch": 2048,
            "eval_every": 2048,
            "eval_episodes": 2,
            "success_bar": 1.0,
        },
    )
    kill_when(lambda: list(out.glob("trials/*/progress.json")))
    figures = run_population(config, ["PushCube-v1"], DEFAULT_CONTROL_MODE, out)
    snapshots = [(row["parent"], row["env_steps"]) for row in Zoo(out / "zoo").rows()]
    return {"trials": sorted(figures["trials"]), "snapshots": sorted(snapshots)}


def main(stage: str) -> None:
    here = str(Path(__file__).parent)
    out = Path(tempfile.mkdtemp())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": here}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    killed = threading.Event()

    def kill_when(condition: Callable[[], bool]) -> None:
        def watch() -> None:
            while not condition():
                time.sleep(0.05)
            kill(nodes[1])
            killed.set()

        threading.Thread(target=watch, daemon=True).start()

    found = {"training": training, "population": population}[stage](out, kill_when)
    alive = sum(node["Alive"] for node in ray.nodes())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(found | {"killed": killed.is_set(), "alive": alive}))


if __name__ == "__main__":
    main(sys.argv[1])
