"""Whole searches: one that is killed, one of recipes, and one of a population."""

import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from support.commands import nnit
from support.networks import TASK
from support.prometheus import collecting
from support.searches import CONFIG, ROOT, SMALL, search_command, space_file

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.zoo import Zoo
from nnit_dist.search import final
from nnit_dist.search.config import SearchConfig
from nnit_dist.search.results import RUNGS, TRIAL, read_trials, rung_file, schedule
from nnit_dist.search.run import Search
from nnit_dist.search.space import load_space
from nnit_dist.search.validation import validation_topologies
from nnit_dist.stages.config import with_values
from nnit_dist.stages.config_file import load_config


def test_widths_with_nothing_between_them_leave_no_topologies_of_validation():
    split = load_config(CONFIG).split()
    with pytest.raises(NnitError, match="leave 0 topologies of validation"):
        validation_topologies(split, [15, 16], 3, 0)


def test_topologies_of_validation_are_neither_seen_nor_tested():
    config = load_config(CONFIG)
    split = config.split()
    found = validation_topologies(split, config.topologies.widths, 24, 0)
    assert len(set(found)) == 24
    assert all(split.kind_of(hidden) == "other" for hidden in found)
    assert {len(hidden) for hidden in found} == {len(hidden) for hidden in split.seen}
    deepest = max(len(hidden) for hidden in split.seen)
    share = [sum(len(h) == deepest for h in some) / len(some) for some in (found, split.seen)]
    assert share[0] == pytest.approx(share[1], abs=0.2)
    tested = {w for held in split.unseen.values() for hidden in held for w in hidden}
    assert not {w for hidden in found for w in hidden} & (tested - set(config.topologies.widths))
    assert found == validation_topologies(split, config.topologies.widths, 24, 0)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path):
    """Three trials on two CPUs, of which the pool holds one."""
    out, command = tmp_path / "search", search_command(tmp_path, 3)
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(trial["state"] == "done" for trial in read_trials(out)):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.kill()
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/rung-*.json")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    trials = read_trials(out)
    assert len(trials) == 3
    assert all(trial["state"] == "done" for trial in trials)
    found = read_json(out / "search.json")
    assert found["trials"] == 3
    assert found["complete"] + found["stopped"] == 3
    assert found["best"]["success"] == max(t["success"] for t in trials if not t["stopped"])
    assert found["test"]["best"]["low"] <= found["test"]["best"]["success"]
    assert (out / "best" / "policies.mp4").exists()
    other = nnit(*command[command.index("tune") :], "--run", tmp_path)
    assert "has none yet; run `nnit align`" in other.stdout


@pytest.fixture(scope="module")
def recipes(ray_local, tmp_path_factory):
    """A search of PPO's recipes, what it returned, and Prometheus' answers where there is one."""
    tmp_path = tmp_path_factory.mktemp("recipes")
    recipe = {
        "env_steps": 1024, "batch": 256, "minibatch": 64, "epochs": 1, "envs": 4,
        "eval_every": 256, "eval_episodes": 1, "success_bar": 1.0,
    }  # fmt: skip
    text = """
from ray import tune
STAGE = "population"
SPACE = {"population.recipe.lr": tune.choice([1e-4, 7e-4])}
"""
    config = load_config(
        CONFIG,
        [
            "population.architectures=[[8]]",
            "ray.num_cpus=2",
            'topologies.unseen={"combination": 1, "width": 1}',
            *(f"population.recipe.{key}={value}" for key, value in recipe.items()),
        ],
    )
    space = load_space(space_file(tmp_path, text), config)
    settings = SearchConfig(trials=2, topologies=3, episodes=2)
    out = tmp_path / "search"
    crowded = with_values(config, {"ray.actors": 2}, "")
    with pytest.raises(NnitError, match="simulators leave 0 CPUs to trials of population.cpus=1"):
        Search(space, crowded, RunDirectory(tmp_path / "run"), out, settings).go()
    search = Search(space, config, RunDirectory(tmp_path / "run"), out, settings)
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(final, "EPISODES", 5)
        installed = shutil.which("prometheus")
        ask = stack.enter_context(collecting(tmp_path)) if installed else None
        yield search, search.go(), ask


@pytest.mark.long
def test_a_search_of_recipes_trains_policies_by_them(recipes):
    search, found, _ = recipes
    out = search.out
    assert (found["trials"], found["failed"]) == (2, 0)
    trials = read_trials(out)
    assert {trial["values"]["population.recipe.lr"] for trial in trials} == {1e-4, 7e-4}
    whole = [trial for trial in trials if not trial["stopped"]]
    assert [rung["step"] for rung in whole[0]["rungs"]] == [256, 512, 1024]
    (network,) = whole[0]["rungs"][0]["networks"]
    assert network["policy"] == f"{TASK}_8_s0_000000256"
    assert network["parameters"] == 35 * 8 + 8 + 8 * 8 + 8
    steps = {member.env_steps for member in Zoo(out / whole[0]["name"] / "zoo").members()}
    assert steps == {256, 512, 768, 1024}
    assert set(found["test"]) == {"best", "defaults", "difference"}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")
def test_the_board_shows_what_prometheus_collects_of_a_search(recipes):
    search, found, ask = recipes
    board = read_json(ROOT / "cluster" / "grafana-tune.json")
    shown = {p["title"]: ask(p["targets"][0]["expr"]) for p in board["panels"]}
    assert all(shown.values()), shown
    assert max(shown["Episodes a second"]) > 0
    assert max(shown["Simulators"]) == 1
    assert max(shown["Simulators replaced"]) == 0
    assert 1 <= max(shown["Trials that are done"]) <= found["trials"]  # the last one ends it
    rungs = [rung["success"] for trial in read_trials(search.out) for rung in trial["rungs"]]
    assert max(shown["Success of the best trial"]) in [pytest.approx(one) for one in rungs]


def test_grafanas_own_types_know_all_of_the_board():
    board = read_json(ROOT / "cluster" / "grafana-tune.json")
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert lost(board, known) == []


def lost(given: Any, known: Any, path: str = "") -> list[str]:
    """Where something of `given` is missing from `known`, or another."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [x for k, v in given.items() for x in lost(v, known.get(k), f"{path}/{k}")]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        return [x for i, v in enumerate(given) for x in lost(v, known[i], f"{path}/{i}")]
    return [] if given == known else [path]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_of_a_population_the_worse_take_over_the_better(ray_local, tmp_path, monkeypatch):
    monkeypatch.setitem(RUNGS, "pbt", (0.5, 1.0))
    monkeypatch.setattr(final, "SAMPLES", 1)
    monkeypatch.setattr(final, "EPISODES", 3)
    small = SMALL | {"ray.num_cpus": 2}
    config = with_values(load_config(CONFIG), small, "test")
    space = load_space(space_file(tmp_path), config)
    settings = SearchConfig(trials=2, topologies=3, episodes=1, scheduler="pbt")
    search = Search(space, config, shipped(TASK), tmp_path / "search", settings)
    found = search.go()
    trials = {trial["name"]: trial for trial in read_trials(search.out)}
    assert (found["trials"], found["complete"], found["stopped"]) == (3, 2, 1)
    (child,) = [trial for trial in trials.values() if trial["inherited"]]
    donor = trials[read_json(search.out / child["name"] / TRIAL)["donor"]]
    assert donor["complete"] and child["complete"]
    assert child["rungs"][0] == donor["rungs"][0]
    assert child["values"] != donor["values"]
    assert [segment["after"] for segment in schedule(list(trials.values()), child)] == [0, 1]
    # What was killed before its end decides alike, and repeats nothing.
    for directory in (search.out / name for name in trials):
        rung_file(directory, 1).unlink(missing_ok=True)
    kept = {path: path.stat().st_mtime_ns for path in search.out.glob("*/rung-0.json")}
    assert search.go()["best"]["name"] in trials
    assert {trial["name"] for trial in read_trials(search.out)} == set(trials)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
