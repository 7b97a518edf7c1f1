import subprocess
import sys

import numpy as np
import pytest
import sapien

from nnit_dist.core.errors import NnitError
from nnit_dist.envs import headless
from nnit_dist.envs.sim import TEST_SEED, TRAIN_SEEDS, VALIDATION_SEED, SimEnv, make_maniskill
from nnit_dist.envs.tasks import check_task

TASKS = [
    "PushCube-v1",
    "PullCube-v1",
    "PickCube-v1",
    "LiftPegUpright-v1",
    "StackCube-v1",
    "RollBall-v1",
    "PokeCube-v1",
    "PlaceSphere-v1",
]
FLAGS = ("success", "is_grasped", "is_cubeA_grasped")


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


def episode(base, reset, step, seed, actions, sample_batch=None):
    """Observations, rewards and success of an episode, from ours or from plain ManiSkill."""
    obs = reset(seed)
    if sample_batch:
        sample_batch(base)
    states, rewards, flags = [np.ravel(obs)], [], []
    for action in actions:
        obs, reward, _, _, info = step(action)
        states.append(np.ravel(obs))
        rewards.append(float(reward))
        flags.append({name: bool(info[name]) for name in FLAGS if name in info})
    return np.stack(states), rewards, flags


def assert_equal_to_plain(env, actions, sample_batch=None):
    """Three episodes in two orders are those of plain ManiSkill, bit for bit; returns flags."""

    def ours(seed):
        def step(action):
            obs, reward, info = env._env.step(action)
            return obs, reward, None, None, info

        return episode(env._env.base, env._env.reset, step, seed, actions[seed], sample_batch)

    plain = make_maniskill(env.info.name, env.info.control_mode, reward=True)

    def theirs(seed):
        reset = lambda seed: plain.reset(seed=seed, options={"reconfigure": True})[0]  # noqa: E731
        return episode(plain, reset, plain.step, seed, actions[seed], sample_batch)

    mine = {seed: ours(seed) for seed in (0, 1, 2, 1, 0)}
    for seed in range(3):
        states, rewards, flags = theirs(seed)
        assert np.array_equal(mine[seed][0], states)
        assert mine[seed][1:] == (rewards, flags)
    plain.close()
    return [flag for seed in mine for flag in mine[seed][2]]


@pytest.mark.parametrize("task", [*TASKS, "PegInsertionSide-v1", "PullCubeTool-v1"])
def test_an_episode_is_that_of_plain_maniskill_built_anew(task):
    """Bit for bit, observations, rewards and success, whatever episodes ran before."""
    env = SimEnv(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 40, *env.action_space.shape))
    assert_equal_to_plain(env, actions.astype(np.float32))
    env.close()


@pytest.mark.parametrize(
    "mode", ["pd_joint_pos", "pd_joint_target_delta_pos", "pd_ee_delta_pose", "pd_joint_vel"]
)
def test_other_control_modes_are_those_of_plain_maniskill(mode):
    env = SimEnv("PushCube-v1", mode)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 20, *env.action_space.shape))
    assert_equal_to_plain(env, actions.astype(np.float32))
    env.close()


@pytest.mark.parametrize("task", ["PickCube-v1", "StackCube-v1"])
def test_grasps_are_those_of_plain_maniskill(task):
    """The cube is put between the fingers, turned at random, and let go again now and then."""
    env = SimEnv(task)
    rng = np.random.default_rng(0)

    def sample_batch(base):
        cube = base.cube if task == "PickCube-v1" else base.cubeA
        turned = np.random.default_rng(base._episode_seed[0]).normal([4, 0, 0, 0])
        turned /= np.linalg.norm(turned)
        cube.set_pose(sapien.Pose(base.agent.tcp.pose.p[0].numpy(), turned))

    actions = rng.uniform(-0.3, 0.3, (3, 40, *env.action_space.shape)).astype(np.float32)
    actions[:, :, -1] = np.where(np.arange(40) % 20 < 14, -1, 1)
    flags = assert_equal_to_plain(env, actions, sample_batch)
    grasped = [flag.get("is_grasped", flag.get("is_cubeA_grasped")) for flag in flags]
    assert 10 < sum(grasped) < len(grasped)
    env.close()


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
        check_task(task, training=True)


def test_unknown_control_mode():
    with pytest.raises(NnitError, match="control mode 'pd_nonsense'"):
        SimEnv("PushCube-v1", "pd_nonsense")


PHYSICS = """
import hashlib, sys
import numpy as np
from nnit_dist.envs import headless
from nnit_dist.envs.sim import SimEnv
if sys.argv[2] == "stand-ins":
    headless.has_render_device = lambda: False
env, digest = SimEnv(sys.argv[1]), hashlib.sha256()
actions = np.random.default_rng(0).uniform(-1, 1, (40, *env.action_space.shape))
for seed in range(3):
    digest.update(env.reset(seed=seed)[0].tobytes())
    for action in actions.astype(np.float32):
        obs, reward, _, _, info = env.step(action)
        digest.update(obs.tobytes() + np.float64(reward).tobytes() + bytes([info["success"]]))
print(digest.hexdigest())
"""


@pytest.mark.skipif(
    not headless.has_render_device(), reason="needs a Vulkan device to compare with"
)
@pytest.mark.parametrize("task", TASKS)
def test_physics_is_the_same_with_and_without_a_renderer(task):
    """Same seeds and actions: bit-equal observations, rewards and success."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", PHYSICS, task, mode],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for mode in ("renderer", "stand-ins")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 65
