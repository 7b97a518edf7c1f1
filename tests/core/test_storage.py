"""Artifacts in an object store, spoken to over S3's own protocol, as on a disk."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.networks import random_policy

from nnit_dist.artifacts.manifest import StageManifest
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash, copy, read_json, write_atomic, write_json
from nnit_dist.core.policy import load_policies, save_policy
from nnit_dist.core.storage import (
    append,
    beside,
    local_file,
    on_disk,
    path_of,
    private_directory,
    remove,
    runs,
)
from nnit_dist.core.zoo import Member, Zoo
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.rollout.episodes import Rollouts
from nnit_dist.rollout.evaluable import read_evaluables
from nnit_dist.rollout.store import EpisodeStore
from nnit_dist.stages.config_file import load_config
from nnit_dist.training.state import read_metrics


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    """A directory on this disk, and one in an object store."""
    if request.param == "disk":
        return tmp_path / "run"
    return path_of(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_an_address_is_a_path_of_a_disk_or_of_an_object_store(bucket, monkeypatch):
    assert on_disk(path_of("runs/x"))
    assert str(path_of(f"{bucket}/x") / "y") == f"{bucket}/x/y"
    assert not on_disk(path_of(f"{bucket}/x"))
    assert str(runs()) == "runs"
    monkeypatch.setenv("NNIT_STORAGE", f"{bucket}/runs")
    assert str(runs() / "quickstart") == f"{bucket}/runs/quickstart"
    with pytest.raises(NnitError, match="nowhere://x is not readable"):
        path_of("nowhere://x")


def test_what_is_written_is_whole_or_absent(place):
    path = write_json(place / "a" / "b.json", {"x": 1})
    assert read_json(path) == {"x": 1}

    def fails(partial):
        partial.write_text("half")
        raise OSError("no room")

    with pytest.raises((NnitError, OSError), match="no room"):
        write_atomic(path, fails)
    assert read_json(path) == {"x": 1}
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]
    assert read_json(copy(path, place / "c.json")) == {"x": 1}
    with local_file(path) as file:
        assert on_disk(file)
        assert file.read_text() == path.read_text()
    remove(place / "a")
    assert not path.exists()


def test_an_object_store_that_refuses_is_named(bucket):
    path = path_of("s3://no-such-bucket/x.json")
    with pytest.raises(NnitError, match=r"cannot write s3://no-such-bucket/x\.json: "):
        write_json(path, 1)


def test_a_job_is_told_where_runs_go(monkeypatch, tmp_path):
    monkeypatch.setenv("NNIT_JOB", "1")
    monkeypatch.delenv("NNIT_STORAGE", raising=False)
    with pytest.raises(NnitError, match="the nodes have no NNIT_STORAGE"):
        runs()
    monkeypatch.setenv("NNIT_STORAGE", str(tmp_path))
    assert runs() == tmp_path


def test_lines_are_added(place):
    path = write_atomic(place / "metrics.jsonl", lambda partial: partial.write_text(""))
    for step in (1, 2):
        append(path, f'{{"step": {step}}}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_logs_of_a_run_lie_on_a_disk(place):
    assert on_disk(beside(place, "logs"))


def test_a_zoo_grows_and_is_read(place):
    zoo = Zoo(place / "zoo")
    members = [
        Member(random_policy(seed=i, policy_id=f"p{i}"), f"t{i}", 0, i, 0.5 + i / 10, 0.5, 1.0)
        for i in range(3)
    ]
    for member in members:
        zoo.append([member])
    (zoo.path / ".part-x.1.tmp.parquet").write_bytes(b"of a killed process")
    assert zoo.verify() == []
    assert [row["id"] for row in zoo.rows(success=(0.55, 1.0))] == ["p1", "p2"]
    assert np.array_equal(zoo.get("p2").policy.flat(), members[2].policy.flat())
    assert [evaluable.id for evaluable in read_evaluables(str(zoo.path))] == ["p0", "p1", "p2"]
    assert zoo.compact() == 3
    assert len(zoo.files()) == 1


def test_policies_are_kept(place):
    policies = [random_policy(seed=i, policy_id=f"p{i}") for i in range(2)]
    for policy in policies:
        save_policy(policy, place / f"{policy.id}.safetensors")
    back = load_policies(place)
    assert [policy.fingerprint() for policy in back] == [p.fingerprint() for p in policies]


def test_a_model_is_kept(place, sampler):
    path = sampler.save(place / "ghn.safetensors")
    one, two = sampler.policies((8,), 1, 0), HypernetModel.load(path).policies((8,), 1, 0)
    assert np.array_equal(one[0].flat(), two[0].flat())


def test_episodes_are_kept_and_what_a_killed_process_left_is_passed_over(place):
    policy, ran = random_policy(), np.array([True, False])
    store = EpisodeStore(place / "episodes")
    store.add(policy, Rollouts((7, 8), ran, ran, np.array([1.0, 2.0])))
    store.flush()
    (store.path / ".episodes-x.1.tmp.parquet").write_bytes(b"half")
    again = EpisodeStore(place / "episodes")
    (found,) = again.load([policy])
    assert sorted(found[1].seeds) == [7, 8]
    again.compact()
    assert len(again.table()) == 2


def test_a_stage_is_done_once(place):
    write_json(place / "input.json", 1)
    stage = StageManifest("align", place / "align", {"seed": 0}, {"input": place / "input.json"})
    assert not stage.is_done()
    stage.begin()
    stage.begin()  # after a crash
    write_json(stage.directory / "artifact.json", 2)
    stage.finish({})
    same = StageManifest("align", place / "align", {"seed": 0}, {"input": place / "input.json"})
    assert same.is_done()
    assert same.key["inputs"] == {"input": content_hash(place / "input.json")}
    with pytest.raises(NnitError, match=r"config\.seed: 0, now 1"):
        StageManifest(
            "align", place / "align", {"seed": 1}, {"input": place / "input.json"}
        ).is_done()


def test_a_run_to_continue_from_may_lie_there(tmp_path, bucket):
    path = tmp_path / "c.yaml"
    path.write_text(f"name: x\ntasks: [PushCube-v1]\ncontinue_from: {bucket}/runs/old\n")
    config = load_config(path)
    assert str(path_of(config.continue_from or "")) == f"{bucket}/runs/old"


def test_the_temporary_directory_is_for_one_account(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path) if len(str(tmp_path)) < 32 else None)
    with tempfile.TemporaryDirectory(prefix="n", dir="/tmp") as base:
        monkeypatch.setattr("tempfile.tempdir", base)
        path = private_directory()
        assert (path.parent, path.stat().st_mode & 0o777) == (Path(base), 0o700)
        path.chmod(0o755)
        assert private_directory().stat().st_mode & 0o777 == 0o700
        path.rmdir()
        path.symlink_to(tmp_path)
        with pytest.raises(NnitError, match="not a directory of this account"):
            private_directory()
