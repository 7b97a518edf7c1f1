"""PPO trials for real, small: what they leave in the zoo, and that death changes nothing."""

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import ValidationError
from support.networks import TASK

from nnit_dist.artifacts.run_directory import PopulationDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash
from nnit_dist.core.zoo import Zoo, best_of_trials
from nnit_dist.envs.batch_env import StackedEnv
from nnit_dist.envs.sim import SimEnv
from nnit_dist.population.config import RECIPES, PopulationConfig, Recipe, TrialSpec
from nnit_dist.population.train import run_population, trial_specs
from nnit_dist.population.trial import Trial
from nnit_dist.rollout.episodes import mean_success

MODE = "pd_joint_delta_pos"
RECIPE = Recipe(
    env_steps=2048, batch=512, minibatch=128, eval_every=1024, eval_episodes=2, success_bar=1.0
)
SPEC = TrialSpec(TASK, MODE, (16, 8), 3)
pytestmark = pytest.mark.usefixtures("ray_local")


def train(out: Path, iterations: int, spec: TrialSpec = SPEC) -> None:
    trial = Trial(spec, RECIPE, PopulationDirectory(out))
    for _ in range(iterations):
        trial.step()
    trial.close()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    train(out, 4)
    return out


def test_a_tasks_recipe_departs_from_that_of_all_where_it_says_so():
    config = PopulationConfig(recipe={"lr": 1e-4, "epochs": 3}, recipes={"T": {"epochs": 7}})
    assert config.recipe_of("T") == Recipe(lr=1e-4, epochs=7)
    assert config.recipe_of("U") == Recipe(lr=1e-4, epochs=3)
    known = PopulationConfig().recipe_of("PickCube-v1")
    assert known == RECIPES["PickCube-v1"] != Recipe()
    said = PopulationConfig(recipe={"env_steps": 7}).recipe_of("PickCube-v1")
    assert said == known.model_copy(update={"env_steps": 7})
    specs = trial_specs(config, ["T", "U"], MODE)
    assert len({spec.id for spec in specs}) == 2 * len(config.architectures)


def test_a_task_may_have_its_own_architectures():
    config = PopulationConfig(architectures=[[8], [9]], architectures_by_task={"U": [[7, 7]]})
    specs = trial_specs(config, ["T", "U"], MODE)
    assert [(spec.task, spec.hidden) for spec in specs] == [("T", (8,)), ("T", (9,)), ("U", (7, 7))]


def test_snapshots_carry_their_measured_success(unbroken):
    members = sorted(Zoo(unbroken / "zoo").members(), key=lambda m: m.env_steps)
    assert [m.env_steps for m in members] == [1024, 2048]
    env = SimEnv(TASK, MODE)
    again = mean_success(env, members[1].policy, range(2**30, 2**30 + 2))
    env.close()
    measured = (members[1].success_once, members[1].success_at_end, members[1].mean_return)
    assert measured == again
    assert not np.array_equal(members[0].policy.flat(), members[1].policy.flat())


def test_a_population_learns_in_normalized_units_in_a_mode_of_other_bounds(tmp_path):
    mode = "pd_joint_pos"  # targets of joints in rad
    train(tmp_path, 2, TrialSpec(TASK, mode, (16, 8), 3))
    (member,) = Zoo(tmp_path / "zoo").members()
    assert member.policy.control_mode == mode
    env = SimEnv(TASK, mode)
    assert not env.bounds.normalized
    again = mean_success(env, member.policy, range(2**30, 2**30 + 2))
    env.close()
    assert (member.success_once, member.success_at_end, member.mean_return) == again


def test_a_trial_trains_a_policy_of_its_activation(tmp_path):
    train(tmp_path, 2, TrialSpec(TASK, MODE, (16, 8), 3, "silu"))
    (member,) = Zoo(tmp_path / "zoo").members()
    assert member.policy.topology.activation == "silu"
    assert member.trial == f"{TASK}_16x8-silu_s3"
    env = SimEnv(TASK, MODE)
    again = mean_success(env, member.policy, range(2**30, 2**30 + 2))
    env.close()
    assert (member.success_once, member.success_at_end, member.mean_return) == again


def test_architectures_are_widths_or_names_with_an_activation():
    config = PopulationConfig(architectures=[[8, 4], "16x8-relu", "5"])
    specs = trial_specs(config, ["T"], MODE)
    described = [((8, 4), "tanh"), ((16, 8), "relu"), ((5,), "tanh")]
    assert [(spec.hidden, spec.activation) for spec in specs] == described
    for wrong in ("16x8-rleu", "16x", [], [0], [8.5], 8, None):
        with pytest.raises(ValidationError, match="write an architecture as") as error:
            PopulationConfig(architectures=[wrong])
        assert error.value.error_count() == 1
    with pytest.raises(ValidationError, match="is there twice"):
        PopulationConfig(architectures=[[64, 64], "64x64-relu", "64x64-tanh"])


@pytest.mark.long
def test_a_trial_that_goes_on_from_its_checkpoint_ends_like_an_unbroken_one(unbroken, tmp_path):
    train(tmp_path, 3)  # one iteration beyond the checkpoint, lost
    train(tmp_path, 2)
    assert content_hash(tmp_path / "zoo") == content_hash(unbroken / "zoo")


@pytest.mark.long
def test_a_trial_on_a_gpus_batch_is_measured_in_a_process_beside_it(unbroken, tmp_path):
    """Real physics behind the interface of a GPU's: the same snapshots to the last bit."""
    made = []

    def make_env(count: int) -> StackedEnv:
        made.append(count)
        return StackedEnv(TASK, MODE, count, reward=True)

    trial = Trial(SPEC, RECIPE, PopulationDirectory(tmp_path), make_env=make_env)
    for _ in range(4):
        trial.step()
    trial.close()
    assert made == [RECIPE.envs]
    assert content_hash(tmp_path / "zoo") == content_hash(unbroken / "zoo")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_trial_whose_process_is_killed_is_retried_from_its_checkpoint(unbroken, tmp_path):
    killed: list[int] = []

    def kill_trial() -> None:
        while not list(tmp_path.glob("trials/*/progress.json")):
            time.sleep(0.1)
        for process in psutil.Process().children(recursive=True):
            if "ray::ImplicitFunc" in process.name() + " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    threading.Thread(target=kill_trial, daemon=True).start()
    config = PopulationConfig(architectures=[[16, 8]], seeds=[3], recipe=RECIPE)
    figures = run_population(config, [TASK], MODE, PopulationDirectory(tmp_path))
    assert killed
    assert figures["env_steps"] == 2048
    assert content_hash(tmp_path / "zoo") == content_hash(unbroken / "zoo")
    best = best_of_trials(Zoo(tmp_path / "zoo").members())
    assert [member.policy.id for member in best] == [f"{SPEC.id}_000002048"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_trial_that_fails_says_why_and_where_its_log_is(tmp_path):
    (tmp_path / "trials").touch()  # nothing can be kept there
    config = PopulationConfig(architectures=[[16, 8]], max_failures=0, recipe=RECIPE)
    with pytest.raises(NnitError, match="1 of 1 trials failed") as error:
        run_population(config, [TASK], MODE, PopulationDirectory(tmp_path))
    assert "The first one: " in str(error.value)
    assert "ot a directory" in str(error.value)
    assert "population.log" in str(error.value)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_process_that_has_trained_another_trial_trains_the_same_policy(unbroken, tmp_path):
    config = PopulationConfig(architectures=[[16, 8]], seeds=[4, 3], cpus=2, recipe=RECIPE)
    run_population(config, [TASK], MODE, PopulationDirectory(tmp_path))
    (state,) = tmp_path.glob("tune/experiment_state-*.json")
    processes = re.findall(r'pid\\*": (\d+)', state.read_text())
    assert [len(processes), len(set(processes))] == [2, 1]
    known = {m.policy.id: m.policy.fingerprint() for m in Zoo(unbroken / "zoo").members()}
    found = {m.policy.id: m.policy.fingerprint() for m in Zoo(tmp_path / "zoo").members()}
    assert {name: found[name] for name in known} == known
    assert len(found) == 2 * len(known)


@pytest.mark.endurance
@pytest.mark.timeout(3000)
def test_a_hundred_trials_share_the_machine_and_those_that_are_killed_are_retried(tmp_path):
    """Four at a time on two logical CPUs; the zoo is read while it grows; none is repeated."""
    tiny = Recipe(env_steps=256, batch=128, minibatch=64, epochs=1, eval_every=128, eval_episodes=1)
    config = PopulationConfig(
        architectures=[[16, 8], [8], [8, 8, 8], [16]],
        seeds=list(range(25)),
        cpus=0.5,
        recipe=tiny.model_copy(update={"success_bar": 1.0}),
    )
    zoo, counts, killed, ended = Zoo(tmp_path / "zoo"), [], [], threading.Event()

    def read_and_kill() -> None:
        while not ended.wait(5):
            counts.append(sum(1 for _ in zoo.members()))
            with contextlib.suppress(psutil.NoSuchProcess):
                running = [p for p in psutil.Process().children(True) if "ray::Impl" in p.name()]
                if running and len(killed) < 5:
                    running[0].kill()
                    killed.append(running[0].pid)

    watch = threading.Thread(target=read_and_kill)
    watch.start()
    figures = run_population(config, [TASK], MODE, PopulationDirectory(tmp_path))
    ended.set()
    watch.join()
    assert len(killed) == 5
    assert counts == sorted(counts) and len(set(counts)) > 10
    assert len(figures["trials"]) == 100
    assert figures["env_steps"] == 25_600
    members = list(zoo.members())
    assert len({m.policy.id for m in members}) == len(members) == 200
    before = content_hash(tmp_path / "zoo")
    assert run_population(config, [TASK], MODE, PopulationDirectory(tmp_path)) == figures
    assert content_hash(tmp_path / "zoo") == before
