"""Functions as policies: the units of their actions, their state, and where results are kept."""

import functools
from typing import Any

import numpy as np
import pytest
from support.commands import nnit_process
from support.networks import TASK, random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import write_json
from nnit_dist.core.policy import save_policy
from nnit_dist.envs.actions import ActionBounds
from nnit_dist.envs.sim import TEST_SEED, SimEnv, check_for_networks
from nnit_dist.nnit.model import load_model
from nnit_dist.rollout.comparison import compare_evaluations
from nnit_dist.rollout.episodes import Part, run_part
from nnit_dist.rollout.evaluable import FunctionPolicy, read_evaluables
from nnit_dist.rollout.evaluation import Evaluator, evaluate
from nnit_dist.rollout.results import PolicyResult
from nnit_dist.rollout.store import EpisodeStore

SEEDS = tuple(range(TEST_SEED, TEST_SEED + 10))


def test_absolute_joint_targets_succeed_as_the_deltas_that_they_come_from():
    """Targets in rad are beyond -1 and 1. A delta of 1 is 0.1 rad."""
    (policy,) = load_model(TASK).generate((40, 40), 1)

    def targets(obs: np.ndarray) -> np.ndarray:
        action = policy.act(obs)
        return np.r_[obs[:7] + 0.1 * action[:7], action[7]]

    found = []
    for function, mode in ((policy.act, "pd_joint_delta_pos"), (targets, "pd_joint_pos")):
        env = SimEnv(TASK, mode, reward=False)
        found.append(run_part(env, Part(FunctionPolicy(function, TASK, mode, "f"), SEEDS)))
    assert found[0].success_once.mean() >= 0.8
    assert found[1].success_once.mean() == pytest.approx(found[0].success_once.mean(), abs=0.1)


def test_a_networks_action_is_between_the_bounds_of_its_control_mode():
    env = SimEnv(TASK, "pd_joint_pos")
    assert not env.bounds.normalized
    rng = np.random.default_rng(0)
    for action in (*np.eye(8, dtype=np.float32), -np.ones(8, np.float32), rng.uniform(-1, 1, 8)):
        scaled = env.bounds.from_normalized(action.astype(np.float32))
        low, high = env.bounds.low, env.bounds.high
        assert scaled == pytest.approx(low + (action + 1) / 2 * (high - low), abs=1e-6)
        assert (low <= scaled).all() and (scaled <= high).all()
        env.reset(seed=3)
        stepped = env.step(action.astype(np.float32))
        env.reset(seed=3)
        assert np.array_equal(stepped[0], env.apply(scaled)[0])
    plain = SimEnv(TASK, "pd_joint_delta_pos")
    assert plain.bounds.normalized
    assert plain.bounds.from_normalized(action) is action


def test_networks_are_refused_where_an_action_has_no_bounds():
    import gymnasium as gym

    bounds = ActionBounds(gym.spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf])))
    with pytest.raises(NnitError, match="no bounds in control mode 'base'"):
        bounds.check("Any-v1", "base")
    assert check_for_networks(TASK, "pd_joint_pos")[0].robot == "panda"


class Counting:
    """Acts by the number of calls since the last `reset`, or since it was made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full(8, 0.3 * np.sin(0.01 * self.calls**2))


class Resetting(Counting):
    def reset(self, seed: int) -> None:
        self.calls = seed % 3


class Seedless(Counting):
    def reset(self) -> None:
        self.calls = 0


class Owner(Seedless):
    def action(self, obs: np.ndarray) -> np.ndarray:
        return self(obs)


def test_no_state_goes_from_an_episode_to_the_next(ray_local):
    """However many episodes a simulator runs, one after the other."""
    functions = [Counting(), Resetting(), Seedless(), Counting, Resetting, Owner().action]
    functions.append(functions[0].__call__)
    functions.append(functools.partial(Seedless()))
    one, two = (
        Evaluator(actors=actors).evaluate(functions, 12, task=TASK, returns=True)
        for actors in (1, 2)
    )
    returns = [result.scores.returns for result in (one, two)]
    assert np.array_equal(*returns)
    count, reset, *_ = returns[0]
    for i in (2, 3, 5, 6, 7):  # all of these begin at 0
        assert np.array_equal(returns[0][i], count)
    assert np.array_equal(returns[0][4], reset)
    assert not np.array_equal(reset, count)


def test_functions_of_one_name_have_ids_of_their_own():
    read = read_evaluables([lambda obs: obs[:8], lambda obs: obs[:8]], TASK)
    assert [policy.id for policy in read] == ["<lambda>", "<lambda>_2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "PickCube-v1"}, "for the task PushCube-v1, not for PickCube-v1"),
        ({"control_mode": "pd_ee_delta_pos"}, "for the control mode pd_joint_delta_pos, not for"),
    ],
)
def test_options_that_contradict_a_policy_are_refused(options, expected, tmp_path):
    policy = random_policy()
    save_policy(policy, tmp_path / "policy.safetensors")
    for source in (policy, tmp_path, [tmp_path / "policy.safetensors"]):
        with pytest.raises(NnitError, match=expected):
            evaluate(source, 1, **options)
    assert read_evaluables(policy, TASK, "pd_joint_delta_pos") == [policy]


class Later:
    """Returns something else in its fifth step."""

    def __init__(self, value: Any) -> None:
        self.value, self.calls = value, 0

    def __call__(self, obs: np.ndarray) -> Any:
        self.calls += 1
        return np.zeros(8) if self.calls < 5 else self.value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "has shape [], expected [8]"),
        (np.zeros((1, 8)), "has shape [1, 8], expected [8]"),
        (np.zeros(8, complex), "must be real numbers"),
        (["1"] * 8, "must be real numbers"),
        (None, "must be real numbers"),
    ],
)
def test_what_is_no_action_fails_its_function_in_any_step(value, expected, ray_local):
    result = Evaluator(actors=1).evaluate([Later(value)], 1, task=TASK)
    assert expected in next(iter(result.failures.values()))


def still(obs: np.ndarray) -> np.ndarray:
    return np.zeros(8, np.float32)


def test_a_directory_holds_one_task_and_the_last_run_of_a_function(ray_local, tmp_path):
    evaluate(still, 2, tmp_path, task=TASK)
    evaluate([still, random_policy()], 3, tmp_path, task=TASK)
    table = EpisodeStore(tmp_path / "episodes").table()
    assert sorted(table["policy_id"].to_pylist()) == ["p"] * 3 + ["still"] * 3
    for name, value in (("task", TASK), ("control_mode", "pd_joint_delta_pos"), ("robot", "panda")):
        assert set(table[name].to_pylist()) == {value}
    for options, expected in (
        ({"task": "PullCube-v1"}, "holds episodes of the task PushCube-v1"),
        ({"task": TASK, "control_mode": "pd_joint_pos"}, "of the control mode pd_joint_delta_pos"),
    ):
        with pytest.raises(NnitError, match=expected):
            evaluate(still, 2, tmp_path, **options)
    again = EpisodeStore(tmp_path / "episodes").table()
    assert again.drop_columns("episode_return").equals(table.drop_columns("episode_return"))


def test_a_function_that_ends_its_process_is_given_up_and_the_exit_code_says_so(tmp_path):
    lines = (
        "def act(obs):",
        "    if obs.any():",
        "        raise SystemExit(0)",
        "    return obs[:8]",
    )
    (tmp_path / "faulty.py").write_text("\n".join(lines))
    words = ("evaluate", "faulty:act", "--task", TASK, "--episodes", 1, "--actors", 1)
    result = nnit_process(*words, cwd=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "not measured: faulty:act" in result.stdout


def test_a_strange_observation_fails_its_policy_and_not_the_simulator(ray_local):
    policy = random_policy()

    def blind(obs: np.ndarray) -> np.ndarray:
        return policy.act(np.where(obs.any(), np.nan, obs))

    result = evaluate([blind, policy], 2, task=TASK)
    assert [row["policy_id"] for row in result.rows()] == ["p"]
    assert "NaN or infinite" in result.failures["blind"]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ({"task": "PullCube-v1"}, "of the task PushCube-v1 and .* of PullCube-v1"),
        ({"control_mode": "pd_joint_pos"}, "of the control mode a and .* of pd_joint_pos"),
        ({"robot": "fetch"}, "of the robot panda and .* of fetch"),
    ],
)
def test_evaluations_of_other_subjects_are_not_compared(subject, expected, tmp_path):
    row = dict.fromkeys(PolicyResult.__required_keys__, 0.5)
    row |= {"policy_id": "p", "fingerprint": "f", "episodes": 1, "hidden": [8]}
    known = {"task": TASK, "control_mode": "a", "robot": "panda", "policies": [row]}
    write_json(tmp_path / "a" / "results.json", known)
    write_json(tmp_path / "b" / "results.json", known | subject)
    with pytest.raises(NnitError, match=expected):
        compare_evaluations(tmp_path / "a", tmp_path / "b")
