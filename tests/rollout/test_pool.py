"""The pool on real ManiSkill and real Ray, under faults.

After each: every (network, start seed) exactly once, and the figures of an undisturbed run.
"""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.networks import TASK, random_policy
from support.pools import MODE, FaultyPolicy, episodes_of, faulty, jobs, new_pool

from nnit_dist.core.errors import NnitError
from nnit_dist.rollout.actors import Simulators
from nnit_dist.rollout.pool import SimulatorPool
from nnit_dist.rollout.queue import Failure, Job

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def calm(ray_local):
    """An undisturbed run on one actor."""
    with new_pool(actors=1) as pool:
        found = episodes_of(pool.run(jobs()))
        assert pool.replaced == 0
    assert len(found) == 16
    return found


def test_results_do_not_depend_on_the_number_of_actors(calm):
    with new_pool(actors=2) as pool:
        assert episodes_of(pool.run(jobs())) == calm


def test_an_actor_killed_in_mid_episode_loses_nothing(calm, tmp_path):
    policies = [random_policy(seed=i, policy_id=f"p{i}") for i in range(4)]
    dying = FaultyPolicy(**vars(policies[1]), marker=str(tmp_path / "died"))
    with new_pool() as pool:
        assert episodes_of(pool.run(jobs([policies[0], dying, *policies[2:]]))) == calm
        assert pool.replaced == 1


def test_all_actors_killed_at_once_lose_nothing(calm):
    with new_pool() as pool:
        outcomes, killed = [], []
        pool.await_simulators(2)
        for outcome in pool.run(jobs()):
            outcomes.append(outcome)
            if not killed:
                killed = simulator_processes()
                for process in killed:
                    process.kill()
        assert len(killed) == 2
        assert pool.replaced == 2
    assert episodes_of(outcomes) == calm


def simulator_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if any("ray::Simulator" in word for word in p.cmdline())]


def test_a_network_that_always_kills_its_actor_is_given_up_and_the_rest_goes_on(ray_local):
    policies = [random_policy(policy_id="good"), faulty("bad")]
    with new_pool(max_attempts=2) as pool:
        outcomes = list(pool.run(jobs(policies, episodes=6)))
        failures = [o for o in outcomes if isinstance(o, Failure)]
        assert [f.job.policy.id for f in failures] == ["bad"]
        assert "died (2 times at start seed" in failures[0].reason
        assert pool.replaced <= 4  # at most one more for each call that was on its way
        good = episodes_of(o for o in outcomes if not isinstance(o, Failure))
        assert set(good) == {("good", seed) for seed in range(10, 16)}


def test_one_deadly_episode_is_found_and_its_neighbors_are_measured(calm):
    from nnit_dist.envs.sim import SimEnv

    env = SimEnv(TASK)
    first_obs, _ = env.reset(seed=12)
    env.close()
    deadly = FaultyPolicy(**vars(random_policy(seed=1, policy_id="p1")), first_obs=first_obs)
    with new_pool() as pool:
        outcomes = list(pool.run([Job(deadly, (10, 11, 12, 13))]))
    (failure,) = [o for o in outcomes if isinstance(o, Failure)]
    assert "3 times at start seed 12" in failure.reason
    found = episodes_of(o for o in outcomes if not isinstance(o, Failure))
    assert all(found[key] == calm[key] for key in found)
    assert {("p1", 10), ("p1", 11)} <= set(found)


def test_a_policy_that_raises_costs_no_actor(ray_local):
    with new_pool() as pool:
        outcomes = list(pool.run(jobs([faulty("bad", fault="raise"), random_policy()])))
        (failure,) = [o for o in outcomes if isinstance(o, Failure)]
        assert "this policy cannot divide" in failure.reason
        assert pool.replaced == 0
        assert len(episodes_of(o for o in outcomes if not isinstance(o, Failure))) == 4


def test_what_the_simulator_refuses_ends_the_run(ray_local):
    refused = faulty("any", fault="refuse")
    with pytest.raises(NnitError, match="this simulator refuses"), new_pool() as pool:
        list(pool.run(jobs([refused])))


def test_a_hanging_actor_is_replaced_after_its_deadline(calm, tmp_path):
    policies = [random_policy(seed=i, policy_id=f"p{i}") for i in range(4)]
    hanging = FaultyPolicy(**vars(policies[0]), fault="hang", marker=str(tmp_path / "hung"))
    with new_pool(deadline_s=10) as pool:
        assert episodes_of(pool.run(jobs([hanging, *policies[1:]]))) == calm
        assert pool.replaced == 1


def test_what_is_dropped_does_not_run(ray_local):
    with new_pool() as pool:
        job, seen, spared = Job(random_policy(), tuple(range(20)), batch=3), [], []
        for _, rollouts in pool.run([job]):
            seen += rollouts.seeds
            if len(seen) >= 6 and not spared:
                spared.append(pool.drop(job))
    assert seen == list(range(20 - spared[0]))
    assert 6 <= len(seen) <= 8


def test_a_pool_can_be_left_in_the_middle_and_used_again(calm):
    with new_pool() as pool:
        next(iter(pool.run(jobs())))
        assert episodes_of(pool.run(jobs())) == calm


def test_a_task_that_does_not_exist_fails_at_the_start(ray_local):
    with (
        pytest.raises(NnitError, match="Did you mean PushCube-v1"),
        SimulatorPool(Simulators("PushCubes-v1", MODE), actors=2),
    ):
        pass


def run_script(script: str, *words: str) -> dict:
    """Run a script on a Ray cluster of its own; it prints JSON in its last line."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / script, *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HERE,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.fault
def test_a_node_that_is_lost_loses_nothing(calm):
    """`kill -9` of all processes of the second of two nodes, in the middle of a run."""
    found = run_script("two_nodes.py", "lost")
    assert found["nodes"] == 2
    assert found["replaced"] >= 1
    assert {(p, s): tuple(v) for p, s, *v in found["episodes"]} == calm


@pytest.mark.fault
def test_a_full_object_store_loses_nothing(calm):
    found = run_script("two_nodes.py", "full")
    assert (found["nodes"], found["replaced"]) == (2, 0)
    assert found["held"] > 1.5 * found["room"] > 0
    assert {(p, s): tuple(v) for p, s, *v in found["episodes"]} == calm


@pytest.mark.long
@pytest.mark.fault
def test_a_node_that_joins_is_used(calm):
    found = run_script("two_nodes.py", "joins")
    assert (found["nodes"], found["alive"], found["replaced"]) == (1, 2, 0)
    assert len(found["episodes"]) == 600
    episodes = {(p, s): tuple(v) for p, s, *v in found["episodes"]}
    assert {key: episodes[key] for key in calm} == calm


@pytest.mark.long
def test_a_cluster_that_grows_is_asked_for_nodes_and_a_run_has_one_driver(calm):
    """From a head without CPUs: one node for the first simulator, another for the work there is."""
    found = run_script("growing_cluster.py")
    assert found["alive"][0] == 1
    assert found["alive"][-1] == 2
    assert found["second"].startswith("/shared/runs/x is at work already, by another driver")
    assert {(p, s): tuple(v) for p, s, *v in found["episodes"]} == calm


def test_no_simulator_goes_to_a_node_that_has_its_cores_for_training(calm):
    found = run_script("two_nodes.py", "training")
    assert found["nodes"] == 2
    assert found["output"] == ""
    assert {(p, s): tuple(v) for p, s, *v in found["episodes"]} == calm


def test_a_node_without_a_working_simulator_is_named_once_and_the_rest_goes_on(calm):
    found = run_script("two_nodes.py", "broken")
    assert found["output"].count("no simulator works on node") == 1
    assert "1 of 2 go on" in found["output"]
    assert {(p, s): tuple(v) for p, s, *v in found["episodes"]} == calm
