"""`nnit bench pool`: the evaluation pool, compared with the bare ManiSkill loop, and at scale.

The bare loop is that of `bench.bare`, with a policy in numpy. The scale part runs on stand-in
simulators, which sleep instead of simulating: it measures the pool and its driver, not physics.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import psutil
import ray

from nnit_dist.bench.bare import bare_env, run_episode
from nnit_dist.core.formatting import count
from nnit_dist.core.policy import Policy
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.core.topology import Topology
from nnit_dist.envs.sim import TEST_SEED, SimEnv, task_info
from nnit_dist.rollout.actors import Ready, Simulators
from nnit_dist.rollout.episodes import Part, Rollouts, run_part
from nnit_dist.rollout.evaluation import measure
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job
from nnit_dist.rollout.scores import Scores
from nnit_dist.rollout.store import EpisodeStore

WARM_EPISODES = 5
REPEATS = 3


def random_policy(info: TaskInfo, seed: int, hidden: tuple[int, ...] = (64, 64)) -> Policy:
    """A policy with random weights."""
    rng = np.random.default_rng(seed)
    topology = Topology(info.obs_dim, hidden, info.act_dim)
    layers = [
        (rng.normal(0, fan_in**-0.5, (out, fan_in)), rng.normal(0, 0.1, out))
        for out, fan_in in topology.shapes
    ]
    return Policy(topology, layers, info.name, "random", info.control_mode, f"random_{seed}")


class SpeedFigures(TypedDict):
    """Env steps per second: the bare loop, ours without Ray, and the pool with one and all actors.

    `physics_share` is PhysX's share of the time of `ours`. `ratio` is the pool's env steps per core
    divided by the bare loop's; `scaling` is the rate of all actors divided by that of one.
    """

    bare: float
    ours: float
    physics_share: float
    one_actor: float
    all_actors: float
    ratio: float
    scaling: float
    call_overhead_ms: float


class EstimateFigures(TypedDict):
    """Seconds left after a tenth of the work: as shown then, and as measured at the end."""

    expected_s: float
    true_s: float


class ScaleFigures(EstimateFigures):
    """Cost of rollouts on stand-in simulators.

    `ideal_s` is the time if no simulator ever waited, `driver_ms` the driver's CPU time per
    rollout, and `memory_mb` how much the driver's memory grew.
    """

    rollouts: int
    seconds: float
    ideal_s: float
    driver_ms: float
    memory_mb: float


def bench_speed(task: str, episodes: int, cores: int) -> SpeedFigures:
    """Measure the speed of the bare loop and of the pool; speeds are medians of several turns.

    Both take turns, so that a machine whose speed drifts favors neither.
    """
    info = task_info(task)
    policy = random_policy(info, 0)
    bare, ours = bare_env(task), SimEnv(task, reward=False)
    steps: dict[str, list[float]] = {"bare": [], "ours": []}
    physics = _time_physics(ours)
    for repeat in range(REPEATS + 1):
        run = episodes if repeat else WARM_EPISODES
        seeds = tuple(range(TEST_SEED, TEST_SEED + run))
        physics["seconds"] = 0.0
        started = time.perf_counter()
        for seed in seeds:
            run_episode(bare, lambda obs: policy.act(obs[0].numpy()), seed)
        between = time.perf_counter()
        run_part(ours, Part(policy, seeds))
        ended = time.perf_counter()
        steps["bare"].append(run * info.max_episode_steps / (between - started))
        steps["ours"].append(run * info.max_episode_steps / (ended - between))
        share = physics["seconds"] / (ended - between)
    ours.close()
    bare_rate, ours_rate = (float(np.median(steps[name][1:])) for name in ("bare", "ours"))
    rates: dict[int, list[float]] = {1: [], cores: []}
    for actors in [1, cores] * REPEATS:
        rate, overhead = pool_rate(policy, info.max_episode_steps, episodes * cores, actors)
        rates[actors].append(rate)
    one_actor, all_actors = float(np.median(rates[1])), float(np.median(rates[cores]))
    return {
        "bare": bare_rate,
        "ours": ours_rate,
        "physics_share": share,
        "one_actor": one_actor,
        "all_actors": all_actors,
        "ratio": all_actors / cores / bare_rate,
        "scaling": all_actors / one_actor,
        "call_overhead_ms": overhead,
    }


def _time_physics(env: SimEnv) -> dict[str, float]:
    """Add up the seconds that PhysX takes in `env`, including the time to measure them."""
    spent, scene = {"seconds": 0.0}, env._env.base.scene
    plain = scene.step

    def step() -> None:
        started = time.perf_counter()
        plain()
        spent["seconds"] += time.perf_counter() - started

    scene.step = step
    return spent


def pool_rate(policy: Policy, steps: int, episodes: int, actors: int) -> tuple[float, float]:
    """Env steps per second of a warm pool, and its overhead per call in milliseconds."""
    seeds = tuple(range(TEST_SEED, TEST_SEED + episodes))
    with SimulatorPool(Simulators(policy.task, policy.control_mode), actors) as pool:
        pool.await_simulators(actors)
        list(pool.run([Job(policy, seeds[: 10 * actors])]))
        started, at_work, calls = time.perf_counter(), 0.0, pool.calls
        for outcome in pool.run([Job(policy, seeds)]):
            assert not isinstance(outcome, Failure)
            at_work += outcome[1].seconds
        spent = time.perf_counter() - started
    overhead = (spent * actors - at_work) / (pool.calls - calls)
    return episodes * steps / spent, 1000 * overhead


class StandInHost:
    """A process that acts as many simulators: they sleep, then report made-up success."""

    async def ready(self) -> Ready:
        """Report readiness at once: nothing has to start."""
        return Ready()

    async def rollout(self, parts: list[Part], episode_s: float) -> list[Rollouts]:
        """Sleep as long as the episodes would take, then return made-up results."""
        await asyncio.sleep(episode_s * sum(len(part.seeds) for part in parts))
        return [
            Rollouts(part.seeds, flags, flags, np.zeros(len(flags)), None, len(flags) * episode_s)
            for part in parts
            for flags in [np.array([seed % 3 > 0 for seed in part.seeds])]
        ]


class StandIns:
    """Stand-in simulators behind the interface of `Simulators`: no physics, only sleep."""

    def __init__(self, count: int, episode_s: float, hosts: int = 4) -> None:
        self.count, self.episode_s = count, episode_s
        host: Any = ray.remote(StandInHost).options(num_cpus=0, max_concurrency=count)
        self._hosts = [host.remote() for _ in range(hosts)]
        self._started = 0

    def start(self) -> "_StandIn":
        """Start a stand-in on the next host, round robin."""
        self._started += 1
        return _StandIn(self._hosts[self._started % len(self._hosts)], self.episode_s)

    def stop(self, actor: "_StandIn") -> None:
        """Do nothing: nothing has to stop."""

    def room(self) -> int:
        """The largest number of stand-ins."""
        return self.count


class _StandIn:
    """Imitates the handle of a Ray actor."""

    def __init__(self, host: Any, episode_s: float) -> None:
        self._host, self._episode_s = host, episode_s
        self.ready = host.ready
        self.rollout = self

    def remote(self, parts: list[Part]) -> Any:
        return self._host.rollout.remote(parts, self._episode_s)


def bench_scale(actors: int, networks: int, episodes: int, episode_s: float) -> ScaleFigures:
    """Measure what `networks` x `episodes` rollouts on stand-in simulators cost the driver."""
    info = TaskInfo("stand-in", DEFAULT_CONTROL_MODE, 35, 8, 50)
    evaluables = [random_policy(info, seed) for seed in range(networks)]
    scores = Scores(networks, range(TEST_SEED, TEST_SEED + episodes))
    process, total = psutil.Process(), networks * episodes
    with tempfile.TemporaryDirectory() as directory:
        stand_ins, watch = StandIns(actors, episode_s), _Watch(total)
        store = EpisodeStore(Path(directory))
        memory, cpu, started = process.memory_info().rss, time.process_time(), time.perf_counter()
        failures = measure(
            evaluables, scores, store, stand_ins, actors=actors, title="rollouts", watch=watch
        )
        spent = time.perf_counter() - started
        cpu = time.process_time() - cpu
        assert not failures
        assert sum(len(r.seeds) for _, r in store.load(evaluables)) == total
    return {
        "rollouts": total,
        "seconds": spent,
        "ideal_s": total * episode_s / actors,
        "driver_ms": 1000 * cpu / total,
        "memory_mb": (process.memory_info().rss - memory) / 2**20,
        "expected_s": watch.expected,
        "true_s": watch.true_left(),
    }


class _Watch:
    """Notes the expected time left after a tenth of the work, and the true one."""

    def __init__(self, total: int) -> None:
        self.total, self.expected, self._at, self._last = total, 0.0, 0.0, 0.0

    def __call__(self, done: int, seconds_left: float) -> None:
        self._last = time.perf_counter()
        if not self._at and done >= self.total / 10:
            self._at, self.expected = self._last, seconds_left

    def true_left(self) -> float:
        return self._last - self._at


def bench_estimate(task: str, networks: int, episodes: int, actors: int) -> EstimateFigures:
    """The time left that a real evaluation shows after a tenth of its work, and the true one."""
    info = task_info(task)
    evaluables = [random_policy(info, seed) for seed in range(networks)]
    scores = Scores(networks, range(TEST_SEED, TEST_SEED + episodes))
    watch = _Watch(networks * episodes)
    simulators = Simulators(task, info.control_mode)
    measure(evaluables, scores, None, simulators, actors=actors, title="episodes", watch=watch)
    return {"expected_s": watch.expected, "true_s": watch.true_left()}


def lines(cores: int, seconds: float, tasks: list[str], scale: bool) -> Iterator[str]:
    """Run all measurements; yields lines of results as soon as they are there."""
    for task in tasks:
        episodes = max(10, int(seconds * 10 / REPEATS))
        speed = bench_speed(task, episodes, cores)
        yield (
            f"{task}: bare ManiSkill loop {count(speed['bare'])} steps/s a core; pool "
            f"{count(speed['all_actors'] / cores)} steps/s a core on {cores} actors: "
            f"{speed['ratio']:.2f} times"
        )
        yield (
            f"  without Ray {count(speed['ours'])} steps/s, of which PhysX takes "
            f"{speed['physics_share']:.0%}; one actor {count(speed['one_actor'])} steps/s, "
            f"{cores} actors {speed['scaling']:.2f} times that; "
            f"pool overhead {speed['call_overhead_ms']:.1f} ms a call"
        )
        yield _estimate(task, bench_estimate(task, 40, max(1, int(3 * seconds)), cores))
    if scale:
        scaled = bench_scale(1000, 1000, 100, 0.5)
        yield (
            f"1,000 stand-in simulators (they sleep), {count(scaled['rollouts'])} rollouts: "
            f"{scaled['seconds']:.0f} s ({scaled['ideal_s']:.0f} s if no simulator ever waited), "
            f"driver {scaled['driver_ms']:.3f} ms CPU a rollout, "
            f"{scaled['memory_mb']:.0f} MB growth"
        )
        yield _estimate("stand-ins", scaled)


def _estimate(name: str, figures: EstimateFigures) -> str:
    off = figures["expected_s"] / figures["true_s"] - 1
    return (
        f"  {name}: time left shown after a tenth {figures['expected_s']:.1f} s, "
        f"true {figures['true_s']:.1f} s ({off:+.0%})"
    )
