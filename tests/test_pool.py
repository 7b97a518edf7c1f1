"""The pool on real ManiSkill and real Ray, under faults."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import TASK, random_policy

from nnit_dist.errors import NnitError
from nnit_dist.evaluate.pool import Failure, Job, SimulatorPool
from nnit_dist.evaluate.rollout import Episode
from nnit_dist.evaluate.run import evaluate
from nnit_dist.evaluate.store import EpisodeStore
from nnit_dist.policy import Policy

MODE = "pd_joint_delta_pos"
pytestmark = pytest.mark.usefixtures("ray_local")


@dataclass
class FaultyPolicy(Policy):
    """Does `fault` in its first call, once if it is given a marker file, else every time."""

    fault: str = "die"
    marker: str = ""

    def act(self, obs: np.ndarray) -> np.ndarray:
        if self._is_due():
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().act(obs)

    def _is_due(self) -> bool:
        if not self.marker:
            return True
        try:  # of two actors that come here at once, one makes the marker
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def faulty(policy_id: str, **kwargs) -> FaultyPolicy:
    base = random_policy(policy_id=policy_id)
    return FaultyPolicy(base.topology, base.layers, TASK, "nnit", id=policy_id, **kwargs)


def episodes_of(outcomes) -> dict[tuple[str, int], Episode]:
    found: dict[tuple[str, int], Episode] = {}
    for outcome in outcomes:
        assert not isinstance(outcome, Failure)
        for episode in outcome[1].episodes:
            key = (episode.policy_id, episode.seed)
            assert key not in found, "an episode was counted twice"
            found[key] = episode
    return found


def jobs(count=4, policies=None):
    policies = policies or [random_policy(seed=i, policy_id=f"p{i}") for i in range(count)]
    return [Job(p, (s, s + 1)) for p in policies for s in (10, 20)]


def test_results_do_not_depend_on_the_number_of_actors():
    with SimulatorPool(TASK, MODE, actors=1) as pool:
        one = episodes_of(pool.run(jobs()))
    with SimulatorPool(TASK, MODE, actors=2) as pool:
        two = episodes_of(pool.run(jobs()))
    assert len(one) == 16
    assert one == two


def test_an_actor_killed_in_mid_episode_loses_nothing(tmp_path):
    with SimulatorPool(TASK, MODE, actors=2) as pool:
        dying = faulty("p1", marker=str(tmp_path / "died"))
        healthy = [random_policy(seed=i, policy_id=f"p{i}") for i in (0, 2, 3)]
        healthy.insert(1, dying)
        disturbed = episodes_of(pool.run(jobs(policies=healthy)))
        assert pool.replaced == 1
    with SimulatorPool(TASK, MODE, actors=2) as pool:
        calm = episodes_of(pool.run(jobs(policies=healthy)))
    assert disturbed == calm


def test_a_network_that_always_kills_its_actor_is_given_up_and_the_rest_goes_on():
    policies = [random_policy(policy_id="good"), faulty("bad")]
    with SimulatorPool(TASK, MODE, actors=2, max_attempts=2) as pool:
        outcomes = list(pool.run([Job(p, (1,)) for p in policies]))
        failures = [o for o in outcomes if isinstance(o, Failure)]
        assert [f.job.policy.id for f in failures] == ["bad"]
        assert "died" in failures[0].reason
        assert len(outcomes) == 2
        assert pool.replaced == 2


def test_a_hanging_actor_is_replaced_after_its_deadline(tmp_path):
    hanging = faulty("slow", fault="hang", marker=str(tmp_path / "hung"))
    with SimulatorPool(TASK, MODE, actors=1, deadline_s=15) as pool:
        found = episodes_of(
            pool.run([Job(hanging, (1,)), Job(random_policy(policy_id="ok"), (1,))])
        )
        assert pool.replaced == 1
    assert set(found) == {("slow", 1), ("ok", 1)}


def test_a_task_that_does_not_exist_fails_at_the_start():
    with (
        pytest.raises(NnitError, match="Did you mean PushCube-v1"),
        SimulatorPool("PushCubes-v1", MODE, actors=1),
    ):
        pass


def test_evaluation_resumes_from_stored_episodes(tmp_path):
    policies = [random_policy(seed=i, policy_id=f"p{i}") for i in range(3)]
    whole = evaluate(policies, episodes=4, out=tmp_path / "whole")
    evaluate(policies[:2], episodes=3, out=tmp_path / "part")
    stored = EpisodeStore(tmp_path / "part" / "episodes").load(policies)
    assert len(stored) == 6
    resumed = evaluate(policies, episodes=4, out=tmp_path / "part")
    assert resumed.rows() == whole.rows()
    assert len(EpisodeStore(tmp_path / "part" / "episodes").load(policies)) == 12


def test_a_policy_written_anew_under_the_same_id_is_measured_anew(tmp_path):
    old, new = random_policy(seed=0), random_policy(seed=1)
    evaluate([old], episodes=1, out=tmp_path)
    again = evaluate([new], episodes=1, out=tmp_path)
    assert again.rows() == evaluate([new], episodes=1).rows()
    assert again.rows() != evaluate([old], episodes=1, out=tmp_path).rows()


def test_failures_are_reported_and_the_rest_is_measured():
    result = evaluate([random_policy(policy_id="good"), faulty("bad")], episodes=2)
    assert [row["policy_id"] for row in result.rows()] == ["good"]
    assert "died" in result.failures["bad"]


@pytest.mark.parametrize(
    ("policies", "episodes", "expected"),
    [
        ([], 1, "no policies"),
        ([random_policy()], 0, "at least 1 episode"),
        ([random_policy(), random_policy()], 1, "several policies carry the id 'p'"),
        ([random_policy(obs_dim=20)], 1, "maps 20 observations to 8 actions, but PushCube-v1"),
    ],
)
def test_bad_requests(policies, episodes, expected):
    with pytest.raises(NnitError, match=expected):
        evaluate(policies, episodes)
