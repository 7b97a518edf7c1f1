"""The whole chain for real, small: on a disk, in an object store, and killed in every stage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.commands import ROOT, nnit

from nnit_dist.core.files import content_hash
from nnit_dist.core.storage import path_of
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.stages.config_file import load_config
from nnit_dist.stages.pipeline import Pipeline
from nnit_dist.training.state import read_metrics

SMOKE = ROOT / "configs" / "smoke.yaml"
# One simulator a pool, as starting them is most of the work; a trial of two batches, each measured.
SMALL = [
    word
    for override in (
        "ray.actors=1",
        "population.recipe.env_steps=1024",
        "population.recipe.batch=512",
        "population.recipe.eval_every=512",
        "population.recipe.eval_episodes=1",
    )
    for word in ("--set", override)
]


def start(out: Path, log: Path) -> subprocess.Popen:
    nnit_command = str(Path(sys.executable).parent / "nnit")
    return subprocess.Popen(
        [nnit_command, "run", str(SMOKE), "--out", str(out), *SMALL],
        cwd=ROOT,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_when(run: subprocess.Popen, path: Path, pattern: str, timeout: float = 300) -> None:
    """kill -9 the driver as soon as a file that matches `pattern` appears under `path`."""
    deadline = time.monotonic() + timeout
    while not list(path.glob(pattern)):
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.2)
    rays = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    psutil.wait_procs(rays, timeout=30)  # Ray's processes notice that their driver is gone


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run on a disk, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "smoke"
    log = out.parent / "log"
    assert start(out, log).wait(timeout=500) == 0, log.read_text()
    return out, log.read_text()


@pytest.fixture(scope="module")
def in_object_store(tmp_path_factory, bucket) -> Iterator[tuple[subprocess.Popen, Path, Path]]:
    """The same run in an object store, which has begun: its process, its place, and its log."""
    out, log = path_of(f"{bucket}/smoke"), tmp_path_factory.mktemp("store") / "log"
    run = start(out, log)
    yield run, out, log
    run.kill()


@pytest.fixture(scope="module")
def killed(in_object_store, tmp_path_factory) -> tuple[Path, str]:
    """Killed in every stage, beside the run that is not: each leaves half of two cores idle."""
    out = tmp_path_factory.mktemp("run") / "smoke"
    log = out.parent / "log"
    for pattern in (
        "population/trials/*/progress.json",
        "align/round-0/step-*",
        "align/round-0.pt",
        "train/train/step-*",
        "generate/.key.json",
        "evaluate/.key.json",
        "report/.key.json",
    ):
        kill_when(start(out, log), out, pattern)
    last = start(out, log)
    assert last.wait(timeout=400) == 0, log.read_text()
    return out, log.read_text()


@pytest.fixture(scope="module")
def calm(in_object_store) -> Path:
    """The run in an object store, finished."""
    run, out, log = in_object_store
    assert run.wait(timeout=600) == 0, log.read_text()
    return out


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_in_every_stage_ends_like_an_unbroken_one(killed, calm):
    """Every artifact is the same to the last bit, on a disk and in an object store."""
    out, log = killed
    assert "Traceback" not in log
    for artifact in (
        "population/zoo",
        "align/ghn.safetensors",
        "train/nnit.safetensors",
        "generate/policies",
        "evaluate/results.parquet",
        "evaluate/results.json",
    ):
        assert content_hash(out / artifact) == content_hash(calm / artifact), artifact


@pytest.mark.timeout(600)
def test_every_stage_leaves_its_manifest_and_the_report_stands_alone(finished):
    out, log = finished
    for stage in ("population", "align", "train", "generate", "evaluate", "report"):
        manifest = json.loads((out / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage
        assert manifest["versions"]["ray"] == "2.60.0"
    aligned = json.loads((out / "align" / "manifest.json").read_text())["figures"]["tasks"]
    for task, figures in aligned.items():  # both teachers were tried together
        assert [pair["teachers"] for pair in figures["lost_by_averages"]] == [
            list(figures["teachers"])
        ], task
    page = (out / "report" / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<img") == 2 + 3 * 2  # two tasks
    assert page.count("<video") == 2
    assert "direct GHN query" in page
    text = (out / "report" / "report.md").read_text()
    for task in ("PushCube-v1", "PickCube-v1"):
        assert text.count(f"| {task} |") == 2  # what its networks do, what its teachers cost
    assert "Traceback" not in log


@pytest.mark.timeout(600)
def test_a_finished_run_is_skipped_and_another_config_is_refused(finished):
    out, _ = finished
    again = nnit("run", SMOKE, "--out", out, *SMALL)
    assert again.stdout.count("already done") == 6
    other = nnit("run", SMOKE, "--out", out, *SMALL, "--set", "nnit.steps=21")
    assert other.returncode == 1
    assert "holds the train stage of another run (config.nnit.steps: 20, now 21)" in " ".join(
        other.stdout.split()
    )


@pytest.mark.timeout(600)
def test_other_episodes_measure_again_and_train_nothing_again(finished, ray_local, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    trained = ("population", "align", "train", "generate")
    kept = {stage: (run / stage / "manifest.json").read_text() for stage in trained}
    again = nnit("run", SMOKE, "--out", run, *SMALL, "--set", "evaluate.episodes=3")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("already done") == len(trained)
    assert {stage: (run / stage / "manifest.json").read_text() for stage in trained} == kept
    results = pq.read_table(run / "evaluate" / "results.parquet")
    assert set(results["episodes"].to_pylist()) == {3}


def run_stage(stage: str, out: Path, *overrides: str) -> list[dict[str, float]]:
    """Run one stage of the smoke configuration; returns its metrics."""
    words = [word for override in overrides for word in ("--set", override)]
    result = nnit(stage, SMOKE, "--out", out, *SMALL, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return read_metrics(out / stage / "metrics.jsonl")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_task_is_added_to_a_finished_run(killed, ray_local, tmp_path):
    """What is trained is taken over, and only the new task's population is trained."""
    before, _ = killed
    added = f"continue_from={before}", "tasks=[PushCube-v1, PickCube-v1, PullCube-v1]"
    for stage in ("population", "align", "train"):
        run_stage(stage, tmp_path, *added, "align.distill.dagger_rounds=0")
    zoo = {path.name for path in (before / "population" / "zoo").iterdir()}
    assert zoo < {path.name for path in (tmp_path / "population" / "zoo").iterdir()}
    trained = sorted(path.parent.name for path in (tmp_path / "population").glob("trials/*/check*"))
    assert trained == ["PullCube-v1_16x16_s0", "PullCube-v1_16x8_s0"]
    known = NNiTModel.load(before / "train" / "nnit.safetensors")
    grown = NNiTModel.load(tmp_path / "train" / "nnit.safetensors")
    assert grown.vocabulary.tasks == [*known.vocabulary.tasks, "PullCube-v1"]
    assert len(grown.tasks) == 3
    first, last = (read_metrics(run / "align" / "metrics.jsonl") for run in (before, tmp_path))
    assert last[0]["action_mse"] < first[0]["action_mse"]
    (policy,) = grown.for_task("PullCube-v1").generate((16, 8), 1)
    assert policy.task == "PullCube-v1"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_workers_align_along_the_curve_of_one(killed, calm, ray_local, tmp_path):
    """The batch is shared. After a round of rollouts the last bits of the weights tell."""
    out, _ = killed
    shutil.copytree(out / "population", tmp_path / "population")
    one = read_metrics(calm / "align" / "metrics.jsonl")
    two = run_stage("align", tmp_path, "training.workers=2", "training.loaders=1")
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert two[0]["action_mse"] == pytest.approx(one[0]["action_mse"], rel=0.002)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_workers_train_nnit_along_the_curve_of_one(killed, ray_local, tmp_path):
    """The batch is shared, not doubled. In float32: in bfloat16 its parts round differently."""
    out, _ = killed
    curves = []
    for workers in (1, 2):
        run = tmp_path / str(workers)
        for done in ("population", "align"):
            shutil.copytree(out / done, run / done)
        curves.append(run_stage("train", run, f"training.workers={workers}", "nnit.bf16=false"))
    for one, two in zip(*curves, strict=True):
        assert one["step"] == two["step"]
        for name in ("flow", "architecture"):
            assert two[name] == pytest.approx(one[name], rel=0.002)


def test_curves_go_to_wandb_offline_and_only_when_asked(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 1, "flow": 3.25}\n')
    Pipeline(load_config(SMOKE), tmp_path)._log("train", {"steps": 1})
    assert not (tmp_path / "wandb").exists()
    Pipeline(load_config(SMOKE, ["logging.wandb=offline"]), tmp_path)._log("train", {"steps": 1})
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes it
    while b"train/flow" not in record.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
