import numpy as np
import pytest

from nnit_dist.envs.sim import TEST_SEED, TRAIN_SEEDS, VALIDATION_SEED, SimEnv
from nnit_dist.envs.tasks import check_task
from nnit_dist.errors import NnitError


@pytest.fixture(scope="module")
def env():
    environment = SimEnv("PushCube-v1")
    yield environment
    environment.close()


def rollout(env, seed, steps=50):
    rng = np.random.default_rng(seed)
    states = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        states.append(env.step(rng.uniform(-1, 1, 8).astype(np.float32))[0])
    return np.stack(states)


def test_spaces_and_episode_length(env):
    obs, _ = env.reset(seed=1)
    assert obs.shape == env.observation_space.shape == (35,)
    assert obs.dtype == np.float32
    for step in range(50):
        _, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
        assert not terminated
        assert truncated == (step == 49)
        assert 0 <= reward <= 1
        assert info["success"] in (True, False)


def test_an_episode_depends_on_its_seed_alone(env):
    first = rollout(env, 7)
    rollout(env, 8)
    assert np.array_equal(first, rollout(env, 7))
    fresh = SimEnv("PushCube-v1", reward=False)
    assert np.array_equal(first, rollout(fresh, 7))
    fresh.close()


def test_start_states_of_training_and_evaluation_never_meet(env):
    env.reset(seed=None)
    drawn = [int(env.np_random.integers(TRAIN_SEEDS)) for _ in range(1000)]
    assert max(drawn) < VALIDATION_SEED < TEST_SEED
    assert VALIDATION_SEED >= TRAIN_SEEDS


def test_positions_name_the_tool_and_the_cube(env):
    env.reset(seed=0)
    positions = env.positions()
    assert {"tool", "cube", "goal_region"} <= set(positions)
    assert all(position.shape == (3,) for position in positions.values())


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("PushCubes-v1", "Did you mean PushCube-v1"),
        ("PlugCharger-v1", "has no dense reward"),
        ("TurnFaucet-v1", "needs assets that are not on this machine"),
    ],
)
def test_unusable_tasks_say_why(task, expected):
    with pytest.raises(NnitError, match=expected):
        check_task(task)


def test_unknown_control_mode():
    with pytest.raises(NnitError, match="control mode 'pd_nonsense'"):
        SimEnv("PushCube-v1", "pd_nonsense")
