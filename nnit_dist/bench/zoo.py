"""`nnit bench zoo`: scan, filter and share a zoo of made-up policies, compared with plain pyarrow.

Every reading runs in a process of its own, so that its peak memory can be measured.
"""

import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from nnit_dist.core.policy import Policy, unflatten
from nnit_dist.core.splits import grid
from nnit_dist.core.topology import Topology
from nnit_dist.core.zoo import Member, Zoo

TASKS = ("PushCube-v1", "PullCube-v1", "LiftPegUpright-v1", "PickCube-v1")
A_FILE = 1000  # policies per file
WORKERS = 4


class _Filter(TypedDict):
    """What `Zoo.scan` and `Zoo.members` filter by."""

    tasks: list[str]
    success: tuple[float, float]


WANTED: _Filter = {"tasks": ["PickCube-v1"], "success": (0.9, 1.0)}


def write_zoo(path: Path, policies: int) -> Zoo:
    """Write policies of several tasks and a grid of topologies, with random weights and success."""
    zoo, rng = Zoo(path), np.random.default_rng(0)
    topologies = [Topology(35, hidden, 8) for hidden in grid([16, 32, 48, 64], [1, 2, 3])]
    for first in range(0, policies, A_FILE):
        members = []
        for number in range(first, min(first + A_FILE, policies)):
            topology = topologies[number % len(topologies)]
            flat = rng.standard_normal(topology.num_params, dtype=np.float32)
            task, name = TASKS[number % len(TASKS)], f"made_up_{number:09d}"
            policy = Policy(topology, unflatten(flat, topology), task, "made up", id=name)
            once = float(rng.uniform())
            members.append(Member(policy, name, 0, number, once, once, 1.0))
        zoo.append(members)
    return zoo


def _columns(zoo: Zoo) -> int:
    return sum(len(table) for table in zoo.scan(weights=False))


def _everything(zoo: Zoo, share: tuple[int, int] = (0, 1)) -> int:
    return sum(len(table) for table in zoo.scan(share=share))


def _some(zoo: Zoo) -> int:
    return sum(len(table) for table in zoo.scan(**WANTED))


def _policies(zoo: Zoo) -> int:
    return sum(1 for _ in zoo.members(**WANTED))


def _arrow_everything(zoo: Zoo) -> int:
    return sum(len(batch) for batch in ds.dataset(zoo.path).to_batches())


def _arrow_some(zoo: Zoo) -> int:
    wanted = (pc.field("task") == "PickCube-v1") & (pc.field("success_once") >= 0.9)
    return sum(len(batch) for batch in ds.dataset(zoo.path).to_batches(filter=wanted))


READINGS: dict[str, Callable[[Zoo], int]] = {
    "all rows without weights": _columns,
    "all rows": _everything,
    "all rows, pyarrow.dataset": _arrow_everything,
    "one task, success of 0.9 and more": _some,
    "the same, pyarrow.dataset": _arrow_some,
    "the same, as policies": _policies,
}


def bench_zoo(path: Path, policies: int) -> Iterator[str]:
    """Write a zoo into `path` and read it in every way; yields lines of results."""
    started = time.perf_counter()
    zoo = write_zoo(path, policies)
    spent = time.perf_counter() - started
    size = sum(file.stat().st_size for file in zoo.files()) / 2**20
    yield (
        f"wrote {policies:,} policies, {size:,.0f} MB in {len(zoo.files()):,} files: "
        f"{policies / spent:,.0f} rows/s"
    )
    for name, read in READINGS.items():
        rows, seconds, peak = _in_new_process(read, zoo)
        yield (
            f"  {name}: {rows:,} rows in {seconds:.2f} s, {policies / seconds:,.0f} rows/s looked "
            f"through; peak memory {peak:,.0f} MB"
        )
    shares = [_in_new_process(_everything, zoo, (rank, WORKERS)) for rank in range(WORKERS)]
    assert sum(rows for rows, _, _ in shares) == policies
    yield (
        f"  shared by {WORKERS} workers: {', '.join(f'{rows:,}' for rows, _, _ in shares)} rows, "
        f"at most {max(seconds for _, seconds, _ in shares):.2f} s and "
        f"{max(peak for _, _, peak in shares):,.0f} MB each"
    )


def _in_new_process(read: Callable[..., int], *arguments: Any) -> tuple[int, float, float]:
    """Run a reading in a new process; returns its rows, its seconds and the growth of peak MB."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (read, *arguments))


def _measured(read: Callable[..., int], *arguments: Any) -> tuple[int, float, float]:
    before, started = _peak(), time.perf_counter()
    rows = read(*arguments)
    return rows, time.perf_counter() - started, _peak() - before


def _peak() -> float:
    """Peak memory of this process in MB. (`getrusage` would count that of its parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
