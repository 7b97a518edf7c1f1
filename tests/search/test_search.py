"""The search: its spaces, turns at the pool, a search that is killed, and its page."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from optuna.distributions import distribution_to_json
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search.optuna import OptunaSearch
from support.networks import TASK, random_policy
from support.prometheus import collecting

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json, write_json
from nnit_dist.core.zoo import Zoo
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.rollout.actors import Simulators
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.search.config import SearchConfig
from nnit_dist.search.dashboard import page_key
from nnit_dist.search.objective import NNiTObjective, work
from nnit_dist.search.results import (
    ENOUGH,
    RUNGS,
    TRIAL,
    importance,
    read_trials,
    rung_file,
    schedule,
    summarize_search,
)
from nnit_dist.search.run import Search
from nnit_dist.search.schedule import Halving, Population, asha, check_pbt, first_ones
from nnit_dist.search.server import evaluation_server
from nnit_dist.search.space import load_space
from nnit_dist.search.validation import validation_topologies
from nnit_dist.search.watch import Watch
from nnit_dist.stages.config import load_config, with_values

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "pushcube.yaml"
SMALL = {
    "nnit.transformer.width": 32,
    "nnit.transformer.depth": 2,
    "nnit.transformer.heads": 2,
    "nnit.steps": 6,
    "nnit.topologies_per_step": 2,
    "nnit.networks_per_topology": 1,
    "nnit.architectures": 2,
    "training.cpus": 1,
    "training.workers": 1,
    "topologies.unseen": {"combination": 1, "width": 1},
}
SPACE = """
from ray import tune
STAGE = "train"
SPACE = {"nnit.lr": tune.loguniform(1e-4, 1e-2), "nnit.ema": tune.choice([0.9, 0.995])}
"""


def space_file(tmp_path: Path, text: str = SPACE) -> Path:
    path = tmp_path / "space.py"
    path.write_text(text)
    return path


def test_a_space_is_read_with_the_defaults_of_a_configuration(tmp_path):
    config = load_config(CONFIG)
    space = load_space(space_file(tmp_path), config)
    assert (space.name, space.stage) == ("space", "train")
    assert space.defaults(config) == {"nnit.lr": config.nnit.lr, "nnit.ema": config.nnit.ema}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SPACE = {}", "STAGE=None; it names what a trial trains: population, align, train"),
        ('STAGE = "train"', "has no SPACE"),
        (
            'STAGE = "train"\nSPACE = {"nnit.lr": 3}',
            "SPACE has 3 for nnit.lr; it takes tune.uniform",
        ),
        (SPACE.replace("nnit.lr", "nnit.rate"), "there is no key 'nnit.rate'"),
        (SPACE.replace("0.995]", "1.5]"), "SPACE leaves out nnit.ema=0.995, the configuration's"),
        (SPACE.replace("0.9,", "1.5,").replace("choice(", "choice([1.5] * 999 + "), "less than 1"),
        (SPACE.replace("nnit.lr", "nnit.steps"), "do not read nnit.steps; they read nnit.*"),
        (SPACE.replace("nnit.lr", "align.distill.lr"), "do not read align.distill.lr"),
        (
            SPACE.replace("train", "align").replace("nnit.lr", "align.distill.steps"),
            "not align.distill.steps, align.distill.teacher_episodes",
        ),
    ],
)
def test_a_space_that_does_not_fit_is_refused(tmp_path, text, expected):
    with pytest.raises(NnitError, match=expected):
        load_space(space_file(tmp_path, text), load_config(CONFIG))


def test_the_default_of_a_recipe_is_the_tasks_and_what_it_says_itself_is_not_searched(tmp_path):
    text = """
from ray import tune
STAGE = "population"
SPACE = {"population.recipe.env_steps": tune.randint(1, 10**7)}
"""
    file = tmp_path / "config.yaml"
    file.write_text("name: x\ntasks: [PickCube-v1]\n")
    config = load_config(file)
    known = config.population.recipe_of("PickCube-v1").env_steps
    assert known != config.population.recipe.env_steps
    assert load_space(space_file(tmp_path, text), config).defaults(config) == {
        "population.recipe.env_steps": known
    }
    own = {"population.recipes": {"PickCube-v1": {"env_steps": 100_000}}}
    with pytest.raises(NnitError, match="has a env_steps of its own; search that, not"):
        load_space(space_file(tmp_path, text), with_values(config, own, "test"))
    other = with_values(config, own | {"tasks": ["PushCube-v1", "PickCube-v1"]}, "test")
    text = text.replace("recipe.", "recipes.PickCube-v1.")
    with pytest.raises(NnitError, match="the search is on PushCube-v1"):
        load_space(space_file(tmp_path, text), other)


def test_defaults_are_written_as_a_search_writes_them(tmp_path):
    domain = '"nnit.condition_width_noise": tune.randint(0, 5)'
    text = f'from ray import tune\nSTAGE = "train"\nSPACE = {{{domain}}}'
    config = load_config(CONFIG)
    assert config.nnit.condition_width_noise == 3.0
    defaults = load_space(space_file(tmp_path, text), config).defaults(config)
    assert json.dumps(defaults) == '{"nnit.condition_width_noise": 3}'


@pytest.mark.parametrize("name", ["nnit", "nnit_pbt", "ghn", "population"])
def test_the_spaces_of_the_repository_fit_the_quickstart(name):
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    space = load_space(ROOT / "tuning" / f"{name}.py", config)
    with_values(config, space.defaults(config), "defaults")


def test_a_key_opens_the_page_and_tells_nothing_of_the_clusters_token():
    assert page_key("token") == page_key("token") != page_key("other")
    assert page_key(None) != page_key(None)
    assert "token" not in page_key("token")


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


def test_a_larger_network_trains_fewer_steps(tmp_path):
    base, run = load_config(CONFIG), shipped(TASK)
    sampler = HypernetModel.load(run.hypernet())
    deeper = with_values(base, {"nnit.transformer.depth": 8}, "")
    assert work(deeper.nnit, sampler) == pytest.approx(2 * work(base.nnit, sampler))
    rungs = RUNGS["asha"]
    assert NNiTObjective(deeper, base, run, tmp_path, rungs=rungs).until[-1] == base.nnit.steps // 2
    assert NNiTObjective(base, base, run, tmp_path, rungs=rungs).until[-1] == base.nnit.steps


def test_trials_have_their_turns_and_failing_networks_count_as_zero(ray_local, tmp_path):
    simulators = Simulators(TASK, "pd_joint_delta_pos", sim_backend="physx_cpu")
    with evaluation_server(simulators, 1, False) as server:
        _take_turns(server)
        with StageProgress("trials") as view:
            watch = Watch(view, tmp_path, total=1, known=[], rungs=1, server=server)
            ray.kill(server)
            with pytest.raises(NnitError, match="the pool of simulators died"):
                while True:  # before trials fail for it
                    watch.looked = 0.0
                    watch.on_step_end(0, [])
                    time.sleep(0.1)


def _take_turns(server):
    long = [random_policy((16,), seed, f"long{seed}") for seed in range(200)]
    ended: dict[str, float] = {}

    def ask(name, policies):
        ended[name + "_success"] = ray.get(server.success.remote(policies, 4))
        ended[name] = time.monotonic()

    asking = [threading.Thread(target=ask, args=("long", long))]
    asking[0].start()
    while not ray.get(server.figures.remote())["episodes"]:  # the long one's first turn
        time.sleep(0.1)
    short = [random_policy((16,), seed, f"short{seed}") for seed in range(2)]
    asking.append(threading.Thread(target=ask, args=("short", short)))
    asking[1].start()
    for thread in asking:
        thread.join(timeout=120)
    assert ended["short"] < ended["long"]
    assert len(ended["long_success"]) == 200
    broken = random_policy((16,), 0, "broken", act_dim=4)
    assert ray.get(server.success.remote([broken, *short], 2))[0] == 0.0
    figures = ray.get(server.figures.remote())
    assert figures["episodes"] == 200 * 4 + 2 * 4 + 3 * 2
    assert figures["failed_networks"] == 1


def search_command(tmp_path: Path, trials: int, space: str = SPACE) -> list[str]:
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    return [
        sys.executable, "-m", "nnit_dist", "tune", str(space_file(tmp_path, space)), str(CONFIG),
        "--run", str(shipped(TASK)), "--out", str(tmp_path / "search"), "--trials", str(trials),
        "--topologies=12", "--episodes=1", "--set=ray.num_cpus=2", *sets,
    ]  # fmt: skip


@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path):
    """Four trials on two CPUs, of which the pool holds one."""
    out, command = tmp_path / "search", search_command(tmp_path, 4)
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
    assert len(trials) == 4
    assert all(trial["state"] == "done" for trial in trials)
    found = read_json(out / "search.json")
    assert found["trials"] == 4
    assert found["whole"] + found["stopped"] == 4
    assert found["best"]["success"] == max(t["success"] for t in trials if not t["stopped"])
    assert found["test"]["best"]["low"] <= found["test"]["best"]["success"]
    assert (out / "best" / "policies.mp4").exists()
    other = subprocess.run(
        [*command, "--run", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "has none yet; run `nnit align`" in other.stdout


@pytest.mark.timeout(900)
def test_a_trial_that_dies_is_tried_again_and_one_that_cannot_work_is_marked(tmp_path):
    widths = 'SPACE = {"nnit.transformer.width": tune.choice([32, 2**20])}'
    space = SPACE[: SPACE.index("SPACE")] + widths
    command = search_command(tmp_path, 2, space)
    command.append('--set=topologies.unseen={"deeper": 1}')  # nothing to test on
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


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
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
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(
            "RAY_metrics_report_interval_ms", "500"
        )
        installed = shutil.which("prometheus")
        ask = stack.enter_context(collecting(tmp_path)) if installed else None
        yield search, search.go(), ask


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


@pytest.mark.parametrize(
    ("space", "trials", "expected"),
    [
        (SPACE.replace("nnit.lr", "nnit.patch").replace("loguniform(1e-4, 1e-2)", "choice([4, 8])"),
         4, "does not fit another nnit.patch"),
        (SPACE.replace("train", "align").replace("nnit.", "align.distill.").replace("ema", "wd"),
         4, "only NNiT's training does"),
        (SPACE, 1, "at least 2 trials"),
        (SPACE.replace("nnit.lr", "nnit.weight_decay").replace("1e-4, 1e-2", "1e-3, 0.1"), 4,
         "does not fit another nnit.weight_decay"),
    ],
)  # fmt: skip
def test_pbt_refuses_what_weights_do_not_fit(tmp_path, space, trials, expected):
    space = space.replace('"align.distill.wd": tune.choice([0.9, 0.995])', "")
    with pytest.raises(NnitError, match=expected):
        check_pbt(load_space(space_file(tmp_path, space), load_config(CONFIG)), trials)


def test_a_population_begins_with_different_trials(tmp_path):
    text = 'from ray import tune\nSTAGE = "train"\nSPACE = {"nnit.ema": tune.choice([0.9, 0.995])}'
    config = load_config(CONFIG)
    space = load_space(space_file(tmp_path, text), config)
    first_ones(space, config, 2, seed=0)
    with pytest.raises(NnitError, match="has 2 different values, and PBT begins with 3 trials"):
        first_ones(space, config, 3, seed=0)


class Tuned:
    """What PBT reads of Tune: some trials, of which one has failed."""

    search_alg = None

    def __init__(self, configs):
        self.trials = [Trial("fake", config=config, stub=True) for config in configs]

    def get_trials(self):
        return self.trials

    get_live_trials = get_trials


def test_nobody_waits_for_a_trial_of_a_population_that_failed(tmp_path):
    space = load_space(space_file(tmp_path), load_config(CONFIG))
    scheduler = Population(space, seed=0)
    scheduler.set_search_properties("success", "max")
    tuned = Tuned([{"nnit.lr": 1e-3, "nnit.ema": 0.9}] * 3)
    for trial in tuned.trials:
        scheduler.on_trial_add(tuned, trial)
    for number, trial in enumerate(tuned.trials[:2]):
        assert scheduler.choose_trial_to_run(tuned) is not None
        result = {"training_iteration": 1, "success": 0.1 * number}
        assert scheduler.on_trial_result(tuned, trial, result) == scheduler.PAUSE
        trial.set_status(Trial.PAUSED)
    tuned.trials[2].set_status(Trial.ERROR)
    assert scheduler.choose_trial_to_run(tuned) in tuned.trials[:2]


def test_what_may_go_on_is_not_asked_again(tmp_path):
    known = [{"name": str(k), "state": "done", "rungs": [{"success": 0.9}]} for k in range(4)]
    trial, result = Trial("fake", stub=True), {"directory": "x", "rung": 0, "success": 0.1}
    for began, expected in ((False, Halving.STOP), (True, Halving.CONTINUE)):
        scheduler = asha(known, tmp_path)
        scheduler.set_search_properties("success", "max")
        scheduler.on_trial_add(None, trial)
        if began:
            (tmp_path / "x" / "rung-1").mkdir(parents=True)
        assert (
            scheduler.on_trial_result(None, trial, result | {"training_iteration": 1}) == expected
        )


@pytest.mark.timeout(900)
def test_trials_of_hypernetworks_have_rounds_of_dagger_of_their_own(tmp_path):
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


@pytest.mark.timeout(900)
def test_of_a_population_the_worse_take_over_the_better(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNGS, "pbt", (0.5, 1.0))
    small = SMALL | {"ray.num_cpus": 2, "topologies.unseen": {"deeper": 1}}  # nothing to test on
    config = with_values(load_config(CONFIG), small, "test")
    space = load_space(space_file(tmp_path), config)
    settings = SearchConfig(trials=2, topologies=3, episodes=1, scheduler="pbt")
    search = Search(space, config, shipped(TASK), tmp_path / "search", settings)
    found = search.go()
    trials = {trial["name"]: trial for trial in read_trials(search.out)}
    assert (found["trials"], found["whole"], found["stopped"]) == (3, 2, 1)
    (child,) = [trial for trial in trials.values() if trial["inherited"]]
    donor = trials[read_json(search.out / child["name"] / TRIAL)["donor"]]
    assert donor["whole"] and child["whole"]
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


def fake_search(out: Path, trials: int) -> None:
    """A search's files with invented figures, to look at its page."""
    import random

    rng = random.Random(0)
    domains = {
        "nnit.lr": tune.loguniform(1e-4, 1e-2),
        "nnit.transformer.width": tune.choice([64, 128, 256]),
        "nnit.condition_depth_noise": tune.uniform(0, 1),
    }
    distributions = OptunaSearch.convert_search_space(domains)
    write_json(
        out / "search.json",
        {
            "stage": "train",
            "rungs": [0.25, 0.5, 1.0],
            "distributions": {k: distribution_to_json(d) for k, d in distributions.items()},
            "settings": {"trials": trials, "topologies": 12, "episodes": 40},
            "run": "runs/quickstart",
            "task": TASK,
        },
    )
    for number in range(trials):
        values = {key: domain.sample() for key, domain in domains.items()}
        directory = out / f"{number:04d}"
        write_json(directory / "trial.json", {"values": values})
        good = 0.9 - 0.1 * abs(values["nnit.condition_depth_noise"] - 0.3) + rng.gauss(0, 0.02)
        for rung in range(1 + number % 3):
            write_json(
                rung_file(directory, rung),
                {
                    "rung": rung,
                    "step": 100 * 2**rung,
                    "loss": 0.3 - 0.2 * good + rng.gauss(0, 0.01),
                    "success": good - 0.2 / 2**rung,
                    "parameters": 10_000 * values["nnit.transformer.width"],
                    "networks": [
                        {"policy": f"nnit_{w}", "parameters": 43 * w + 8, "success": good - 1 / w}
                        for w in (16, 32, 64)
                    ],
                    "seconds": {"start": 8.0, "train": 60.0, "write": 1.0, "measure": 10.0},
                },
            )
        if number % 3 < 2:
            write_json(directory / "stopped.json", {"after": number % 3})


def test_what_a_search_came_to(tmp_path):
    fake_search(tmp_path, 60)
    found = summarize_search(read_trials(tmp_path))
    assert (found["trials"], found["whole"], found["stopped"]) == (60, 20, 40)
    assert found["loss_and_success"][-1]["rank_correlation"] < -0.3
    assert found["seconds"]["start"] == pytest.approx(found["seconds"]["train"] * 8 / 60)
    with pytest.raises(NnitError, match="no trial of the search came through"):
        summarize_search([])


def test_lists_are_choices_too(tmp_path):
    domains = OptunaSearch.convert_search_space({"x": tune.choice([[1], [2, 3]])})
    known = [
        {"rungs": [{"success": 0.1 * k}], "inherited": 0, "values": {"x": [[1], [2, 3]][k % 2]}}
        for k in range(ENOUGH)
    ]
    text = {key: distribution_to_json(domain) for key, domain in domains.items()}
    assert importance(known, text) == {"x": pytest.approx(1)}
    known[0]["inherited"] = 1  # its first rung is another's
    assert importance(known, text) == {}


@pytest.fixture
def served(tmp_path):
    """The page of a search of a thousand trials, and its address."""
    fake_search(tmp_path, 1000)
    command = [sys.executable, "-m", "nnit_dist", "dashboard", str(tmp_path), "--no-browser"]
    env = {**os.environ, "RAY_AUTH_TOKEN": "secret-of-the-cluster", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [*command, "--port", "8271"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    said = server.stdout.readline().split("?token=")
    assert said[0] == "dashboard: http://127.0.0.1:8271/"
    assert "secret-of-the-cluster" not in said[1]
    deadline = time.monotonic() + 30
    while get(server_address("")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield tmp_path, said[1].strip()
    server.terminate()
    server.wait(timeout=10)


def server_address(path: str) -> str:
    return f"http://127.0.0.1:8271/{path}"


def get(address: str, **headers: str) -> tuple[int, bytes] | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return None


def test_the_page_is_for_those_with_the_token(served):
    out, _ = served
    wrong = "", "data.json", "plotly.js", "best/policies.mp4", "?token=", "?token=wrong"
    for path in (*wrong, "?token=secret-of-the-cluster"):
        assert get(server_address(path))[0] == 401, path
    known = {"Authorization": "Bearer secret-of-the-cluster"}
    status, body = get(server_address("data.json"), **known)
    assert status == 200
    assert len(json.loads(body)["trials"]) == 1000
    (out / "best").mkdir()
    (out / "best" / "weights.png").write_bytes(b"picture")
    assert get(server_address("best/weights.png"), **known) == (200, b"picture")
    for name in ("..%2Fsearch.json", "other.png", "search.json"):
        assert get(server_address(f"best/{name}"), **known)[0] == 404


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_a_thousand_trials(served):
    from playwright.sync_api import sync_playwright

    (out, key), errors = served, list[str]()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server_address(f"?token={key}"))
        page.wait_for_selector("body[data-drawn='1000']")
        assert "token" not in page.url
        rows = page.locator("#trials tr")
        assert rows.count() == 1001
        best = max(read_trials(out), key=lambda t: (len(t["rungs"]), t["success"]))
        assert page.locator("#trials tr.best td").first.inner_text() == best["name"]
        page.locator("#trials th", has_text="loss").click()
        shown = [float(text) for text in page.locator("#trials td:nth-child(5)").all_inner_texts()]
        assert shown == sorted(shown, reverse=True)
        assert page.locator("#importance .bars .point").count() == 3
        assert page.locator("#networks .point").count() == 3 + 3  # all lie on the front
        # It is live: what is written while it is open appears.
        write_json(out / "new" / "trial.json", read_json(out / "0000" / "trial.json"))
        page.wait_for_selector("body[data-drawn='1001']")
        browser.close()
    assert errors == []
