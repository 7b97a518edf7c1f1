"""Trials of real searches: one that dies, and those of hypernetworks."""

import shutil
import subprocess
import time

import psutil
import pytest
from support.networks import TASK
from support.searches import CONFIG, ROOT, SMALL, SPACE, search_command, space_file

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.search import final
from nnit_dist.search.config import SearchConfig
from nnit_dist.search.results import read_trials
from nnit_dist.search.run import Search
from nnit_dist.search.space import load_space
from nnit_dist.stages.config import with_values
from nnit_dist.stages.config_file import load_config


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_trial_that_dies_is_tried_again_and_one_that_cannot_work_is_marked(tmp_path):
    widths = 'SPACE = {"nnit.transformer.width": tune.choice([32, 2**20])}'
    space = SPACE[: SPACE.index("SPACE")] + widths
    command = search_command(tmp_path, 2, space)
    search = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    out, deadline = tmp_path / "search", time.monotonic() + 300
    # Its workers have started: what they hold would keep the second attempt from starting.
    while not list(out.glob("*/metrics.jsonl")):
        assert search.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    working = next(out.glob("*/metrics.jsonl")).parent.name
    killed = [
        process
        for process in psutil.Process(search.pid).children(recursive=True)
        if "ImplicitFunc" in " ".join(process.cmdline())
    ]
    for process in killed:
        process.kill()
    printed = search.communicate(timeout=600)[0]
    assert killed
    assert search.returncode == 0, printed
    states = {t["values"]["nnit.transformer.width"]: t["state"] for t in read_trials(out)}
    assert states == {32: "done", 2**20: "failed"}
    assert working in {t["name"] for t in read_trials(out) if t["state"] == "done"}
    (failed,) = out.glob("*/error.txt")
    assert "can't allocate memory" in failed.read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_trials_of_hypernetworks_have_rounds_of_dagger_of_their_own(
    ray_local, tmp_path, monkeypatch
):
    monkeypatch.setattr(final, "SAMPLES", 1)
    monkeypatch.setattr(final, "EPISODES", 3)
    text = """
from ray import tune
STAGE = "align"
SPACE = {"align.distill.dagger_rounds": tune.choice([0, 1])}
"""
    small = SMALL | {
        "ray.num_cpus": 2,
        "align.ghn": {"embed_dim": 16, "channels": [8, 8]},
        "align.distill": {
            "steps": 8, "dagger_rounds": 1, "dagger_networks": 4, "dagger_episodes": 1,
        },
    }  # fmt: skip
    config = with_values(load_config(CONFIG), small, "test")
    space = load_space(space_file(tmp_path, text), config)
    run = tmp_path / "run"
    shutil.copytree(shipped(TASK).path, run, ignore=shutil.ignore_patterns("states-*", "train"))
    first = DistillationData.load(shipped(TASK).align.states(TASK, 3)).thinned(1000)
    first.save(run / "align" / f"states-{TASK}-0.safetensors")
    settings = SearchConfig(trials=2, topologies=2, episodes=1)
    search = Search(space, config, RunDirectory(run), tmp_path / "search", settings)
    assert set(search.go()["test"]) >= {"best"}
    trials = {t["values"]["align.distill.dagger_rounds"]: t for t in read_trials(search.out)}
    assert [rung["step"] for rung in trials[1]["rungs"]] == [2, 4, 8][: len(trials[1]["rungs"])]
    for rounds, trial in trials.items():
        directory = search.out / trial["name"]
        assert len(list(directory.glob("*.pt"))) == 1  # what goes on from here
        assert len(list(directory.glob("states-*"))) == rounds
    (visited,) = search.out.glob("*/states-*")
    new = sum(map(len, DistillationData.load(visited).obs)) - sum(map(len, first.obs))
    assert new == 4 * 50  # steps that a network's episode has
