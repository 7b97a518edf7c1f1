"""A Ray cluster of two nodes with a CPU each, one of which is killed in the middle of a stage.

`training`: two workers, with fewer allowed. `growing`: the same with one node, and another comes.
`alignment`: as `training`, and simulators for DAgger. `population`: three trials, two at a time.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from support.networks import TASK, random_policy
from support.nodes import WATCHFUL, kill

from nnit_dist.artifacts.run_directory import METRICS, AlignDirectory, PopulationDirectory
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.core.zoo import Member, Zoo
from nnit_dist.hypernet.config import AlignConfig
from nnit_dist.population.config import PopulationConfig
from nnit_dist.population.train import run_population
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.align import Alignment
from nnit_dist.stages.config import RunConfig
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import Loop, LoopSpec, fit, worker_setup
from nnit_dist.training.optimizer import average_gradients
from nnit_dist.training.state import read_metrics

RAY = str(Path(sys.executable).with_name("ray"))
TOTAL, FATAL = 40, 12  # steps, and the one after which a node is killed


class Sum(torch.nn.Module):
    """The sum of all steps so far: wrong if one is left out or taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(1))


def worker(pause: float, loop: LoopSpec) -> None:
    _, _, workers = worker_setup()
    total = Sum()

    def train_step(step: int, number: int) -> dict[str, float]:
        time.sleep(pause if workers == 1 else 0.1)
        meter = torch.nn.Parameter(torch.zeros(1))
        meter.grad = torch.full((1,), float(number))
        average_gradients([meter])
        total.value += meter.grad
        return {"sum": float(total.value), "workers": workers}

    Loop({"total": total}, loop, log_every=1, save_every=4).run(TOTAL, lambda n: n, train_step)


def growing(out: Path, change_when: Callable) -> dict:
    return training(out, change_when, pause=4.0)  # Ray Train looks for nodes once a minute


def training(out: Path, change_when: Callable, pause: float = 0.1) -> dict:
    change_when(lambda: (rows := read_metrics(out / METRICS)) and rows[-1]["step"] >= FATAL)
    with StageProgress("") as view:
        view.add("steps", TOTAL)
        placement = Placement(workers=2, min_workers=1, cpus=1)
        fit(worker, pause, placement, directory=out, name="train", view=(view, "steps"))
    rows = read_metrics(out / METRICS)
    return {
        "total": TOTAL,
        "steps": [int(row["step"]) for row in rows],
        "sums": [row["sum"] for row in rows],
        "workers": [int(row["workers"]) for row in rows],
    }


def alignment(out: Path, change_when: Callable) -> dict:
    members = [Member(random_policy((16, 16)), "trial", 0, 1, 1.0, 1.0, 0.0)]
    config = AlignConfig(
        success_episodes=1,
        ghn={"channels": [16, 16]},
        distill={
            "steps": TOTAL,
            "dagger_rounds": 1,
            "teacher_episodes": 4,
            "dagger_networks": 2,
            "dagger_episodes": 1,
            "checkpoint_every": 2,
        },
    )
    change_when(lambda: list(out.glob("round-0/step-*")))  # of 20 steps
    task, seen = TaskInfo(TASK, DEFAULT_CONTROL_MODE, 35, 8, 50), [(8,), (16, 8)]
    placement = Placement(workers=2, min_workers=1, cpus=1)
    run = RunConfig(
        name="x", tasks=[TASK], align=config, training=placement, topologies={"variation": 0}
    )
    stage = Alignment(run, [task], members, seen, out=AlignDirectory(out))
    figures = stage.run()
    steps = [int(row["step"]) for row in read_metrics(out / METRICS)]
    files = sorted(path.name for path in out.iterdir())
    return {"steps": steps, "figures": figures, "files": files}


def population(out: Path, change_when: Callable) -> dict:
    config = PopulationConfig(
        architectures=[[8], [16], [8, 8]],
        recipe={
            "env_steps": 1024,
            "batch": 512,
            "eval_every": 512,
            "eval_episodes": 1,
            "success_bar": 1.0,
        },
    )
    change_when(lambda: list(out.glob("trials/*/progress.json")))
    figures = run_population(
        config, ["PushCube-v1"], DEFAULT_CONTROL_MODE, PopulationDirectory(out)
    )
    snapshots = [(row["trial"], row["env_steps"]) for row in Zoo(out / "zoo").rows()]
    return {"trials": sorted(figures["trials"]), "snapshots": sorted(snapshots)}


def main(stage: str) -> None:
    here = str(Path(__file__).parents[1])
    out = Path(tempfile.mkdtemp())
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"  # a node that died is awaited
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **WATCHFUL})
    count = 1 if stage == "growing" else 2
    nodes = [cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": here}) for _ in range(count)]
    ray.init(address=cluster.address, log_to_driver=False)
    changed, came = threading.Event(), []

    def change_when(condition: Callable[[], bool]) -> None:
        def watch() -> None:
            while not condition():
                time.sleep(0.05)
            if stage == "growing":  # a node of `Cluster` can only begin in the main thread
                command = [RAY, "start", "--address", cluster.address, "--num-cpus=1", "--block"]
                came.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": here}))
            else:
                kill(nodes[1])
            changed.set()

        threading.Thread(target=watch, daemon=True).start()

    stages = {one.__name__: one for one in (training, growing, alignment, population)}
    found = stages[stage](out, change_when)
    alive = sum(node["Alive"] for node in ray.nodes())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ray.shutdown()
        for node in came:
            node.terminate()
            node.wait(60)
        cluster.shutdown()
    print(json.dumps(found | {"changed": changed.is_set(), "alive": alive}))


if __name__ == "__main__":
    main(sys.argv[1])
