"""`nnit bench scaling`: stages with 1, 2, ... workers on this machine, and predictions for more.

Measured: the rates of evaluation and PPO by number of processes; the time of a training step by a
worker's share of the batch; the driver's CPU time per call and per rollout; the storage of an
episode; and the time to put a network into the object store and to get it.
Simulated from these, event by event: one driver that serves up to 10,000 simulators.
Calculated: a training step of many workers that exchange gradients over a network.
"""

import heapq
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import ray
import torch

from nnit_dist.bench.pool import StandIns, pool_rate, random_policy
from nnit_dist.bench.population import start_meter
from nnit_dist.bench.train import SIZES, RandomNetworks
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.envs.sim import task_info
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.population.config import Recipe
from nnit_dist.rollout.pool import SimulatorPool, call_size
from nnit_dist.rollout.queue import Failure, Job
from nnit_dist.rollout.store import EpisodeStore

SIMULATORS = (10, 100, 300, 1000, 3000, 10_000)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
ALL_REDUCE_S = 2e-4  # latency of an all-reduce
EPISODES_A_SIMULATOR = 40
EPISODES_A_NETWORK = 100


@dataclass(frozen=True)
class Driver:
    """Costs of the driver: CPU seconds per call and per rollout, stored bytes per episode."""

    call_s: float
    rollout_s: float
    stored_bytes: float


def measure_rates(task: str, cores: int, seconds: float) -> dict[str, dict[int, float]]:
    """Env steps per second of evaluation and of PPO, with 1 to `cores` processes."""
    info = task_info(task)
    policy, episodes = random_policy(info, 0), max(10, int(10 * seconds))
    rates: dict[str, dict[int, float]] = {"evaluation": {}, "PPO": {}}
    for count in range(1, cores + 1):
        rate, _ = pool_rate(policy, info.max_episode_steps, episodes * count, count)
        rates["evaluation"][count] = rate
        meters = [start_meter("trial", task, Recipe(), seed) for seed in range(count)]
        ray.get([meter.rate.remote(0) for meter in meters])
        rates["PPO"][count] = sum(ray.get([meter.rate.remote(seconds) for meter in meters]))
        for meter in meters:
            ray.kill(meter)
    return rates


def measure_step(name: str, steps: int, workers: Sequence[int] = WORKERS) -> dict[int, float]:
    """Median seconds that a worker's share of NNiT's step takes on this CPU, by workers."""
    size, seconds = SIZES[name], {}
    for count in workers:
        trainer = Trainer(
            size.config, RandomNetworks(size), torch.device("cpu"), 0, share=(0, count)
        )
        spent = []
        for step in range(steps + 1):
            started = time.perf_counter()
            trainer.step(step)
            spent.append(time.perf_counter() - started)
        seconds[count] = float(np.median(spent[1:]))
    return seconds


def gradient_bytes(name: str) -> int:
    """Bytes of the gradients (float32) that the workers of a training exchange in a step."""
    size = SIZES[name]
    trainer = Trainer(size.config, RandomNetworks(size), torch.device("cpu"), 0)
    return sum(4 * p.numel() for p in trainer.network.parameters())


def measure_driver(
    settings: Sequence[tuple[int, float]] = ((20, 0.1), (100, 0.5)), episodes: int = 100
) -> Driver:
    """Measure the driver in two runs of stand-in simulators: (simulators, seconds an episode)."""
    info = TaskInfo("stand-in", DEFAULT_CONTROL_MODE, 35, 8, 50)
    rows, spent, stored = [], [], 0.0
    for actors, episode_s in settings:
        evaluables = [random_policy(info, seed) for seed in range(4 * actors)]
        jobs = [Job(evaluable, tuple(range(episodes))) for evaluable in evaluables]
        with tempfile.TemporaryDirectory() as name:
            store = EpisodeStore(Path(name))
            with SimulatorPool(StandIns(actors, episode_s), actors) as pool:
                pool.await_simulators(actors)
                began, calls = time.process_time(), pool.calls
                for outcome in pool.run(jobs):
                    assert not isinstance(outcome, Failure)
                    store.add(outcome[0].policy, outcome[1])
                spent.append(time.process_time() - began)
            store.flush()
            rollouts = episodes * len(evaluables)
            rows.append([pool.calls - calls, rollouts])
            stored = sum(file.stat().st_size for file in Path(name).iterdir()) / rollouts
    call_s, rollout_s = np.linalg.solve(np.array(rows, float), np.array(spent))
    return Driver(max(0.0, float(call_s)), max(0.0, float(rollout_s)), stored)


@dataclass(frozen=True)
class Store:
    """A 64x64 network in the object store: its bytes, and the seconds to put and to get it."""

    network_bytes: int
    put_s: float
    get_s: float


class _Reader:
    """Reads from the object store in another process."""

    def read(self, references: list[Any]) -> float:
        """Get all objects; returns the mean seconds per object."""
        began = time.perf_counter()
        for reference in references:
            ray.get(reference)
        return (time.perf_counter() - began) / len(references)


def measure_store(task: str, networks: int = 1000) -> Store:
    """Measure putting networks into the object store and getting them in another process."""
    info = task_info(task)
    policies = [random_policy(info, seed) for seed in range(networks)]
    reader: Any = ray.remote(_Reader).options(num_cpus=0).remote()
    ray.get(reader.read.remote([ray.put(policies[0])]))
    began = time.perf_counter()
    references = [ray.put(policy) for policy in policies]
    put_s = (time.perf_counter() - began) / networks
    get_s = ray.get(reader.read.remote(references))
    ray.kill(reader)
    return Store(len(ray.cloudpickle.dumps(policies[0])), put_s, get_s)


class SimulatedPool(TypedDict):
    """Shares of time that simulators and driver work, in [0, 1], and rates of a simulated pool.

    `rollouts_s` is rollouts per second. `networks_s` is networks per second that leave the driver's
    node, if no call finds its networks already on its own node.
    """

    simulators: float
    driver: float
    rollouts_s: float
    networks_s: float


def simulate_pool(
    simulators: int, episode_s: float, driver: Driver, *, spread: float = 0.1, seed: int = 0
) -> SimulatedPool:
    """Simulate a pool, event by event: the driver serves one call at a time, in order of arrival.

    An episode takes `episode_s` seconds on average; `spread` is the relative standard deviation
    between calls. Calls have as many episodes as the pool gives them.
    """
    rng = np.random.default_rng(seed)
    left = simulators * EPISODES_A_SIMULATOR
    total, networks, free, works, busy, ended = left, 0.0, 0.0, 0.0, 0.0, 0.0
    ready = [(0.0, number) for number in range(simulators)]
    while left:
        arrived, number = heapq.heappop(ready)
        count = call_size(left, simulators, episode_s)
        left -= count
        networks += 1 + count / EPISODES_A_NETWORK  # a call may begin in the middle of a network
        served = driver.call_s + count * driver.rollout_s
        free, busy = max(free, arrived) + served, busy + served
        worked = count * episode_s * max(0.1, 1 + spread * rng.standard_normal())
        works += worked
        ended = max(ended, free + worked)
        heapq.heappush(ready, (free + worked, number))
    return {
        "simulators": works / simulators / ended,
        "driver": busy / ended,
        "rollouts_s": total / ended,
        "networks_s": networks / ended,
    }


def step_over_network(share_s: float, workers: int, size: int, bytes_s: float) -> float:
    """Seconds of a training step with a ring all-reduce of `size` bytes of gradients.

    `share_s` is the time of a worker's share, `bytes_s` the bandwidth in bytes per second.
    """
    if workers == 1:
        return share_s
    return share_s + ALL_REDUCE_S + 2 * (workers - 1) / workers * size / bytes_s


def lines(task: str, cores: int, seconds: float, steps: int) -> Iterator[str]:
    """Run all measurements; yields the Markdown page line by line."""
    info = task_info(task)
    yield "**Measured**\n"
    rates = measure_rates(task, cores, seconds)
    counts = " | ".join(str(count) for count in range(1, cores + 1))
    yield f"| {task}, env steps/s by processes | {counts} |"
    yield "| --- |" + " --- |" * cores
    for stage, by_count in rates.items():
        yield f"| {stage} | " + " | ".join(f"{rate:,.0f}" for rate in by_count.values()) + " |"
    driver = measure_driver()
    yield (
        f"\nThe driver spends {1000 * driver.call_s:.2f} ms of CPU a call and "
        f"{1000 * driver.rollout_s:.3f} ms a rollout; an episode takes {driver.stored_bytes:.0f} "
        "bytes of storage.\n"
    )
    store = measure_store(task)
    yield (
        f"The object store takes a network of {store.network_bytes / 1000:.0f} kB in "
        f"{1000 * store.put_s:.2f} ms, and gives it to another process in "
        f"{1000 * store.get_s:.2f} ms.\n"
    )
    share = measure_step("pushcube", steps)
    size = gradient_bytes("pushcube")
    yield "**Simulated: one driver, a pool of many simulators**\n"
    episode_s = info.max_episode_steps / rates["evaluation"][1]
    yield (
        f"{episode_s * 1000:.0f} ms an episode, {EPISODES_A_SIMULATOR} episodes a simulator, as "
        "`bench pool` has them for one actor.\n"
    )
    yield "| simulators | at work | driver busy | rollouts/s | networks sent, MB/s |"
    yield "| --- |" + " --- |" * 4
    for simulators in SIMULATORS:
        pool = simulate_pool(simulators, episode_s, driver)
        yield (
            f"| {simulators:,} | {pool['simulators']:.0%} | {pool['driver']:.0%} | "
            f"{pool['rollouts_s']:,.0f} | {pool['networks_s'] * store.network_bytes / 1e6:.1f} |"
        )
    yield "\n**NNiT's step: measured shares of a batch, calculated network**\n"
    yield "| workers | share of the batch | " + " | ".join(NETWORKS) + " | speedup |"
    yield "| --- |" + " --- |" * (len(NETWORKS) + 2)
    for workers, share_s in share.items():
        times = [step_over_network(share_s, workers, size, rate) for rate in NETWORKS.values()]
        yield (
            f"| {workers} | {1000 * share_s:.0f} ms | "
            + " | ".join(f"{1000 * t:.0f} ms" for t in times)
            + f" | {share[1] / times[-1]:.1f} |"
        )
