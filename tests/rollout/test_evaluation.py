"""`evaluate` on real ManiSkill: what it reads, stores, resumes and refuses."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.networks import TASK, random_policy
from support.pools import faulty

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import save_policy
from nnit_dist.core.topology import Topology
from nnit_dist.core.zoo import Member, Zoo
from nnit_dist.rollout.comparison import compare_evaluations
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.evaluable import read_evaluables
from nnit_dist.rollout.evaluation import Evaluator, evaluate
from nnit_dist.rollout.store import EpisodeStore

pytestmark = pytest.mark.usefixtures("ray_local")
POLICIES = [random_policy(seed=i, policy_id=f"p{i}") for i in range(3)]


def stored(out: Path) -> list[tuple[str, int]]:
    table = EpisodeStore(out / "episodes").table()
    return sorted(zip(table["policy_id"].to_pylist(), table["seed"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, ray_local):
    """Three policies, four episodes each, undisturbed."""
    out = tmp_path_factory.mktemp("whole")
    return evaluate(POLICIES, episodes=4, out=out, returns=True), out


def test_every_episode_is_one_row_of_parquet(whole):
    result, out = whole
    (file,) = (out / "episodes").glob("*.parquet")
    table = pq.read_table(file)
    assert len(table) == 12
    assert len(set(stored(out))) == 12
    assert result.rows()[0]["return"] == pytest.approx(np.mean(table["episode_return"][:4]))


def test_evaluation_goes_on_from_stored_episodes(whole, tmp_path):
    evaluate(POLICIES[:2], episodes=3, out=tmp_path, returns=True)
    before = {path: path.read_bytes() for path in (tmp_path / "episodes").glob("*.parquet")}
    resumed = evaluate(POLICIES, episodes=4, out=tmp_path, returns=True)
    assert resumed.rows() == whole[0].rows()
    assert len(before) == 1
    assert stored(tmp_path) == stored(whole[1])


def test_success_does_not_depend_on_whether_returns_are_measured(whole, tmp_path):
    plain = evaluate(POLICIES, episodes=4, out=tmp_path)
    assert all(row["return"] is None for row in plain.rows())
    assert [{**row, "return": None} for row in whole[0].rows()] == plain.rows()
    assert evaluate(POLICIES, episodes=4, out=tmp_path, returns=True).rows() == whole[0].rows()
    assert len(stored(tmp_path)) == 12
    assert evaluate(POLICIES, episodes=4, out=tmp_path, returns=True).rows() == whole[0].rows()


def test_a_policy_written_anew_under_the_same_id_is_measured_anew(tmp_path):
    old, new = random_policy(seed=0), random_policy(seed=1)
    evaluate(old, episodes=1, out=tmp_path, returns=True)
    again = evaluate(new, episodes=1, out=tmp_path, returns=True)
    assert again.rows() == evaluate(new, episodes=1, returns=True).rows()
    assert again.rows() != evaluate(old, episodes=1, out=tmp_path, returns=True).rows()


def test_failures_are_reported_and_the_rest_is_measured():
    result = evaluate([random_policy(policy_id="good"), faulty("bad", fault="raise")], episodes=2)
    assert [row["policy_id"] for row in result.rows()] == ["good"]
    assert "this policy cannot divide" in result.failures["bad"]
    with pytest.raises(NnitError, match="no policy 'bad' was measured"):
        result.success("bad")


@pytest.mark.long
@pytest.mark.fault
def test_a_killed_driver_goes_on_from_what_is_stored(tmp_path):
    """`kill -9` of `nnit evaluate` in the middle; run again, it ends as if nothing had been."""
    for policy in POLICIES:
        save_policy(policy, tmp_path / "policies" / f"{policy.id}.safetensors")
    command = [Path(sys.executable).parent / "nnit", "evaluate", tmp_path / "policies"]
    command = [*map(str, command), "--episodes", "150", "--actors", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not stored(tmp_path):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(stored(tmp_path)) < 450
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    rows = json.loads((tmp_path / "results.json").read_text())["policies"]
    assert rows == evaluate(POLICIES, episodes=150).rows()
    assert len(set(stored(tmp_path))) == len(stored(tmp_path)) == 450


@pytest.mark.fault
def test_a_full_disk_stops_with_an_error_and_loses_nothing_once_there_is_room(whole, tmp_path):
    """Files may not grow in this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(NnitError, match=r"cannot write .*episodes"):
            evaluate(POLICIES, episodes=4, out=tmp_path, returns=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stored(tmp_path) == []
    again = evaluate(POLICIES, episodes=4, out=tmp_path, returns=True)
    assert again.rows() == whole[0].rows()
    assert stored(tmp_path) == stored(whole[1])


def test_episodes_that_could_not_be_written_are_written_when_there_is_room(tmp_path):
    store = EpisodeStore(tmp_path / "episodes", flush_s=0.0)
    flags = np.array([True, False])
    tmp_path.joinpath("episodes").touch()  # a file where the directory belongs
    store.add(POLICIES[0], Rollouts((1, 2), flags, flags, np.zeros(2)))
    assert "cannot write" in store.trouble
    tmp_path.joinpath("episodes").unlink()
    store.add(POLICIES[0], Rollouts((3, 4), flags, flags, np.zeros(2)))
    assert store.trouble == ""
    assert stored(tmp_path) == [("p0", 1), ("p0", 2), ("p0", 3), ("p0", 4)]


def test_early_stops_do_not_depend_on_the_number_of_actors(tmp_path):
    """The random policies fail always; a width of 0.1 is reached after 30 episodes."""
    one = Evaluator(actors=1).evaluate(POLICIES, 60, tmp_path, until_halfwidth=0.1)
    two = Evaluator(actors=2).evaluate(POLICIES, 60, until_halfwidth=0.1)
    assert one.rows() == two.rows()
    assert all(row["episodes"] < 60 for row in one.rows())
    full = evaluate(POLICIES, episodes=60)
    for policy in POLICIES:
        stopped = one.success(policy.id)
        assert np.array_equal(stopped, full.success(policy.id)[: len(stopped)])
    assert len(stored(tmp_path)) < 100


def hold_still(obs: np.ndarray) -> np.ndarray:
    return np.zeros(8, np.float32)


def test_callables_are_policies():
    closed_over = np.float32(0.1)
    result = evaluate([hold_still, lambda obs: closed_over * obs[:8]], episodes=2, task=TASK)
    assert [row["policy_id"] for row in result.rows()] == ["hold_still", "<lambda>"]
    still = Topology(35, (8,), 8)
    layers = [(np.zeros(shape), np.zeros(shape[0])) for shape in still.shapes]
    zero = replace(random_policy(), topology=still, layers=layers, id="zero")
    both = evaluate([hold_still, zero], episodes=2, task=TASK, returns=True)
    assert both.rows()[0]["return"] == both.rows()[1]["return"]


def test_a_callable_is_named_as_module_and_function():
    (evaluable,) = read_evaluables(f"{__name__}:hold_still", TASK)
    assert evaluable.id == f"{__name__}:hold_still"
    assert evaluable.begin(0)(np.zeros(35)).shape == (8,)
    with pytest.raises(NnitError, match="has no attribute 'hold_stil'"):
        read_evaluables(f"{__name__}:hold_stil", TASK)
    with pytest.raises(NnitError, match="names no task"):
        read_evaluables(hold_still)


def test_files_and_a_zoo_are_read(tmp_path):
    for policy in POLICIES:
        save_policy(policy, tmp_path / "files" / f"{policy.id}.safetensors")
    Zoo(tmp_path / "zoo").append([Member(p, "", 0, 0, 0.0, 0.0, 0.0) for p in POLICIES])
    for source in (tmp_path / "files", tmp_path / "zoo", str(tmp_path / "zoo")):
        found = read_evaluables(source)
        assert [s.fingerprint() for s in found] == [p.fingerprint() for p in POLICIES]
    assert read_evaluables(tmp_path / "files" / "p1.safetensors")[0].id == "p1"


def test_two_evaluations_are_compared_from_the_same_start_states(tmp_path):
    from nnit_dist.core.files import write_json

    for name, policies in {"a": POLICIES[:1], "b": POLICIES[1:2], "c": POLICIES}.items():
        result = evaluate(policies, episodes=4, out=tmp_path / name)
        write_json(tmp_path / name / "results.json", {"policies": result.rows()})
    text = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert "+0.000" in text
    assert "McNemar p = 1.000" in text
    assert "over 4 start states" in compare_evaluations(tmp_path / "a", tmp_path / "c")
    result = evaluate(POLICIES, episodes=4, out=tmp_path / "c")
    assert result.compare("p0", "p1").episodes == 4


def nan_policy():
    policy = random_policy()
    policy.layers[0][0][0, 0] = np.nan
    return policy


@pytest.mark.parametrize(
    ("policies", "options", "expected"),
    [
        ([], {}, "no policies"),
        (random_policy(), {"episodes": 0}, "1 to 1,000,000 episodes"),
        ([random_policy(), random_policy()], {}, "several policies carry the id 'p'"),
        (random_policy(obs_dim=20), {}, "maps 20 observations to 8 actions, but PushCube-v1"),
        (random_policy(act_dim=7), {}, "maps 35 observations to 7 actions, but PushCube-v1"),
        (nan_policy(), {}, "NaN or infinite weights in layer 0"),
        (replace(random_policy(), task="PushCub-v1"), {}, "no task 'PushCub-v1'. Did you mean"),
        ([random_policy(), replace(random_policy(), task="PickCube-v1")], {}, "several tasks"),
        (hold_still, {"task": "PickCube-v1", "episodes": 0}, "1 to 1,000,000 episodes"),
        (lambda obs: obs, {"task": TASK}, "must return an action of 8 finite numbers"),
        (lambda obs: obs @ obs @ 1, {"task": TASK}, "fails on an observation"),
        (random_policy(), {"until_halfwidth": 5.0}, "must lie between 0 and 0.5"),
        (3, {}, "cannot evaluate 3"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(policies, options, expected, tmp_path):
    with pytest.raises(NnitError, match=expected):
        evaluate(policies, **{"episodes": 1, "out": tmp_path, **options})
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.timeout(60)
def test_a_gpu_that_is_not_there_is_not_waited_for():
    with pytest.raises(NnitError, match="needs a GPU, and Ray has none"):
        Evaluator(sim_backend="physx_cuda").evaluate(POLICIES[0], 1)
