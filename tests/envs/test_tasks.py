"""Which tasks can be used, and that nothing is downloaded to find out."""

import numpy as np
import pytest
from support.commands import nnit

from nnit_dist.core.errors import NnitError
from nnit_dist.envs import sim
from nnit_dist.envs.sim import SimEnv
from nnit_dist.envs.survey import survey, try_task
from nnit_dist.envs.tasks import all_tasks, check_task, prepare_process

# Without assets of its own; by what they are: usual, two robots, other looks, no dense reward.
USABLE = ["PushCube-v1", "TwoRobotPickCube-v1", "PushT-v1", "StackPyramid-v1"]


@pytest.mark.parametrize("task", [*USABLE, "MS-CartpoleBalance-v1"])
def test_tasks_of_every_kind_can_be_measured(task):
    support = try_task(task)
    assert support.evaluation == "", support
    assert bool(support.population) == (task == "StackPyramid-v1"), support
    env = SimEnv(task, support.control_mode)
    env.reset(seed=0)
    obs, reward, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert obs.shape == env.observation_space.shape
    assert np.isfinite(reward)
    assert info["success"] is False


def test_robots_act_each_with_its_share_of_an_action():
    env = SimEnv("TwoRobotPickCube-v1")
    agents = env._env.base.agent.agents

    def moved(action: np.ndarray) -> list[float]:
        env.reset(seed=0)
        before = [agent.robot.qpos.clone() for agent in agents]
        for _ in range(5):
            env.step(action.astype(np.float32))
        return [
            float((agent.robot.qpos - old).abs()[0, :7].max())
            for agent, old in zip(agents, before, strict=True)
        ]

    first, second = moved(np.r_[np.ones(8), np.zeros(8)])
    assert first > 0.1 > second
    first, second = moved(np.r_[np.zeros(8), np.ones(8)])
    assert second > 0.1 > first


def test_without_a_success_the_return_of_a_whole_episode_decides(monkeypatch):
    """A pole that begins upright stays up for a while without an action."""
    env, successes = SimEnv("MS-CartpoleBalance-v1", reward=False), {}
    for bar in (0.0, 1.1):
        monkeypatch.setattr(sim, "SUCCESS_BY_RETURN", bar)
        env.reset(seed=1)
        env._max_steps, truncated, flags = 20, False, []
        while not truncated:
            _, _, _, truncated, info = env.step(np.zeros(1, np.float32))
            flags.append(info["success"])
        successes[bar] = flags
    assert successes[0.0] == [False] * 19 + [True]
    assert not any(successes[1.1])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Empty-v1", "does not say what success is"),
        ("AnymalC-Reach-v1", "download_asset anymal_c"),  # of its robot
        ("OpenCabinetDoor-v1", "download_asset partnet_mobility_cabinet"),
        ("SceneManipulation-v1", "cannot build it on this machine"),
    ],
)
def test_a_task_that_cannot_be_used_says_why(task, expected):
    with pytest.raises(NnitError, match=expected):
        SimEnv(task, reward=False)


def test_a_population_needs_a_dense_reward_and_an_evaluation_does_not():
    assert check_task("StackPyramid-v1") == 250
    with pytest.raises(NnitError, match="no dense reward"):
        check_task("StackPyramid-v1", training=True)


def test_nothing_is_downloaded_unasked():
    prepare_process()
    from mani_skill.utils import assets, download_asset

    with pytest.raises(NnitError, match="download_asset anymal_c"):
        download_asset.download(assets.DATA_SOURCES["anymal_c"])


def test_tasks_are_listed_with_what_can_be_done():
    result = nnit("tasks", "PushCube-v1", "NoSuch-v1")
    assert result.returncode == 0, result.stderr
    assert "2 tasks: 1 can be measured, 1 trained on here" in result.stdout
    assert "has no task" in result.stdout


@pytest.mark.endurance
@pytest.mark.timeout(1800)
def test_every_registered_task_works_or_says_why_not():
    found = {support.task: support for support in survey(all_tasks())}
    assert set(found) == set(all_tasks())
    for support in found.values():
        assert support.evaluation == "" or support.evaluation.endswith("."), support
        assert "ended with code" not in support.evaluation, support
    assert all(not found[task].evaluation for task in USABLE)
