"""The `nnit` command: as a user types it where a process of its own matters, else called here."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import typer
from support.commands import ROOT, nnit, nnit_process
from support.networks import random_policy

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.cli.main import _summary
from nnit_dist.core.files import write_json
from nnit_dist.core.policy import load_policies, save_policies, save_policy
from nnit_dist.stages.config_file import load_config
from nnit_dist.stages.pipeline import Pipeline

ZOO = shipped("PushCube-v1").population.zoo.path


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Four policies of an unseen topology, from the shipped model."""
    out = tmp_path_factory.mktemp("generated")
    result = nnit_process("generate", "--hidden", "40x56", "--samples", 4, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_generate_writes_policies_in_the_contract(generated):
    policies = load_policies(generated)
    assert len(policies) == 4
    assert {p.topology.hidden for p in policies} == {(40, 56)}
    assert {p.source for p in policies} == {"nnit"}


@pytest.mark.parametrize("task", ["PullCube-v1", "LiftPegUpright-v1", "PickCube-v1"])
def test_networks_of_other_tasks_are_written_too(task, tmp_path):
    result = nnit("generate", "--task", task, "--hidden", "48x96", "--out", tmp_path)
    assert result.returncode == 0, result.stdout
    (policy,) = load_policies(tmp_path)
    assert (policy.task, policy.topology.hidden) == (task, (48, 96))


def test_generate_draws_architectures_when_none_is_named(tmp_path):
    result = nnit("generate", "--samples", 3, "--seed", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(load_policies(tmp_path / "policies")) == 3  # unless --out names another place


def test_networks_of_an_unseen_topology_push_the_cube(generated, ray_local):
    """The product's promise, on the shipped model: nobody trained these networks."""
    words = ["evaluate", generated, "--episodes", 25, "--until-halfwidth", 0.12, "--videos"]
    result = nnit(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    out = Path(f"{generated}-evaluation")
    results = json.loads((out / "results.json").read_text())
    assert results["summary"]["episodes"] >= 80
    assert results["summary"]["success_once"] >= 0.85
    assert "which biases a policy's success: by +0.0" in result.stdout
    for name in ("best", "median", "worst"):
        assert next(imageio.get_reader(out / f"{name}.mp4").iter_data()).shape == (512, 768, 3)
    again = nnit(*words[:-1])
    assert json.loads((out / "results.json").read_text()) == results
    assert "mean success_once" in again.stdout
    compared = nnit("compare", out, out)
    assert "+0.000 [+0.000, +0.000], 95% interval over 2" in compared.stdout


def test_a_function_is_evaluated(tmp_path):
    (tmp_path / "still.py").write_text(
        "import numpy as np\n\ndef act(obs):\n    return np.zeros(8)\n"
    )
    words = ["evaluate", "still:act", "--task", "PushCube-v1", "--episodes", 2]
    result = nnit_process(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mean success_once 0.000" in result.stdout
    assert (tmp_path / "still.act-evaluation" / "results.json").exists()


def test_the_shipped_population_is_sound():
    zoo = shipped("PushCube-v1").zoo().path
    result = nnit("zoo", "verify", zoo)
    assert result.returncode == 0
    assert "no problems" in result.stdout


def test_zoo_ls_show_and_export(tmp_path):
    zoo = shipped("PushCube-v1").zoo().path
    assert nnit("zoo", "ls", zoo).returncode == 0
    assert nnit("zoo", "export", zoo, "--out", tmp_path).returncode == 0
    policies = load_policies(tmp_path)
    shown = nnit("zoo", "show", zoo, policies[0].id)
    assert policies[0].id in shown.stdout


def test_keys_lists_what_a_configuration_takes():
    printed = nnit("keys", "ray.").stdout.split("\n")
    assert [line.split()[0] for line in printed if line.strip()] == [
        "key", "ray.address", "ray.num_cpus", "ray.actors", "ray.sim_backend",
    ]  # fmt: skip


def test_doctor_tells_what_is_here():
    result = nnit("doctor")
    assert result.returncode == 0
    assert "rendering" in result.stdout
    assert "torch" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generate", "--hidden", "4", "--out", "x"], "writes from 8 units up"),
        (["generate", "--hidden", "136", "--out", "x"], "up to 64, and writes up to 128"),
        (["generate", "--hidden", "8x8x8x8x8x8", "--out", "x"], "up to 3, and writes up to 5"),
        (["generate", "--hidden", "32", "--success", "2", "--out", "x"], "between 0 and 1"),
        (["generate", "--hidden", "32", "--guidance", "-1", "--out", "x"], "at least 0"),
        (["generate", "--hidden", "wide", "--out", "x"], "write them as 64 or 40x56"),
        (["generate", "--task", "StackCube-v1", "--out", "x"], "no trained model for StackCube-v1"),
        (["generate", "--model", "none.safetensors", "--out", "x"], "there is no model file"),
        (["bench", "generalization", "--kind", "deep"], "no kind 'deep'"),
        (["run", "configs/none.yaml"], "there is no configuration"),
        (["run", "configs/smoke.yaml", "--set", "nnit.stepz=3"], "unknown key 'nnit.stepz'"),
        (["population", "configs/smoke.yaml", "--set", "tasks=[PushCub-v1]"], "PushCube-v1"),
        (["align", "configs/smoke.yaml", "--out", "/tmp/nnit-none"], "run `nnit population`"),
        (["evaluate", "/tmp/nnit-none"], "no policy files"),
        (["evaluate", "nowhere:act", "--task", "PushCube-v1"], "cannot import nowhere:act"),
        (["evaluate", "os:getcwd"], "names no task"),
        (["compare", "/tmp/nnit-none", "/tmp/nnit-none"], "there is no /tmp/nnit-none"),
        (["zoo", "ls", "/tmp/nnit-none"], "is no zoo"),
        (["report", "configs/smoke.yaml", "--out", "/tmp/nnit-none"], "run `nnit run` for all"),
        (["generate", "--hidden", "32", "--out", "/proc/x"], "cannot write /proc/x"),
        (["generate", "--hidden", "32", "--out", "README.md"], "cannot write README.md"),
        (["run", "configs/smoke.yaml", "--out", "/proc/x"], "cannot write /proc/x"),
        (["evaluate", ZOO, "--episodes", "1", "--out", "/proc/x"], "cannot write in /proc/x"),
        (
            ["evaluate", ZOO, "--episodes", f"{10**11}", "--out", "/tmp/nnit-none"],
            "in 1 to 1,000,000",
        ),
        (["evaluate", ZOO, "--address", "http://127.0.0.1:8265", "--episodes", "1"], "ray://HOST"),
        (["run", "configs/smoke.yaml", "--set", f"seed={10**30}"], "'seed': Input should be less"),
        (["zoo", "ls", "s3://"], "names no bucket"),
        (["zoo", "ls", "s3:///x"], "names no bucket"),
        (["evaluate", ":act", "--task", "PushCube-v1"], "cannot import :act"),
        (
            ["run", "configs/smoke.yaml", "--set", "ray.address=127.0.0.1:1"],
            "Ray could not be reached",
        ),
        (
            [
                "run",
                "configs/smoke.yaml",
                "--out",
                "/tmp/nnit-none",
                "--set",
                "align.distill.topologies_per_step=99",
                "--set",
                "training.workers=99",
                "--set",
                "training.gpu=true",
            ],
            "training.gpu asks for 99 GPU(s)",
        ),
    ],
)
def test_mistakes_get_one_readable_message(words, expected, tmp_path):
    words = [tmp_path if word == "OUT" else word for word in words]
    if "ray.address=127.0.0.1:1" in words or "--address" in words:  # where no Ray runs yet
        result = nnit_process(*words, "--out", tmp_path / "run")
    else:
        result = nnit(*words)
    assert result.returncode == 1
    assert expected in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout + result.stderr


def test_debug_shows_the_traceback():
    result = nnit_process("generate", "--hidden", "4", "--out", "x", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_evaluating_a_damaged_policy_names_the_file(tmp_path):
    path = save_policy(random_policy(), tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:500])
    result = nnit("evaluate", tmp_path)
    assert result.returncode == 1
    assert "p.safetensors" in result.stdout
    assert "truncated" in result.stdout


def test_exit_codes_tell_whether_all_some_or_no_policies_were_measured(tmp_path, ray_local):
    overflowing = random_policy(policy_id="overflowing")
    weight, _ = overflowing.layers[-1]
    weight[:] = np.sign(weight) * 3e38
    save_policies([random_policy()], tmp_path / "all")
    save_policies([random_policy(), overflowing], tmp_path / "some")
    save_policies([overflowing], tmp_path / "none")
    for name, code in (("all", 0), ("some", 3), ("none", 1)):
        for more in ((), ("--until-halfwidth", 0.4)):
            result = nnit("evaluate", tmp_path / name, "--episodes", 1, "--actors", 1, *more)
            assert result.returncode == code, result.stdout
            assert ("not measured: overflowing" in result.stdout) == (code > 0)
    assert "1 of 2 measured" in nnit("evaluate", tmp_path / "some", "--episodes", 1).stdout


@pytest.mark.parametrize(
    "text", ["def act(o:", "raise SystemExit(3)", "missing_name", "import nowhere"]
)
def test_a_module_that_cannot_be_run_is_named(text, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_module.py").write_text(text)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    result = nnit("evaluate", "own_module:act", "--task", "PushCube-v1", cwd=tmp_path)
    assert (result.returncode, "cannot import own_module:act: " in result.stdout) == (1, True)
    result = nnit("tune", tmp_path / "own_module.py", ROOT / "configs/smoke.yaml", cwd=tmp_path)
    assert (result.returncode, "own_module.py cannot be run: " in result.stdout) == (1, True)


@pytest.mark.parametrize("text", ["[]", "{}", '{"policies": "abc"}', '{"policies": [{"id": 1}]}'])
def test_results_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    result = nnit("compare", tmp_path, tmp_path)
    assert result.returncode == 1
    assert "does not hold results" in " ".join(result.stdout.split())


def test_policies_are_refined_by_teachers_of_their_control_mode_alone(tmp_path):
    policy = next(iter(shipped("PushCube-v1").zoo().members())).policy
    save_policies([replace(policy, control_mode="pd_joint_pos")], tmp_path / "in")
    result = nnit("refine", tmp_path / "in", "--steps", 1, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "act in pd_joint_delta_pos, and the policies in pd_joint_pos" in " ".join(
        result.stdout.split()
    )


def test_samples_are_written_a_few_at_a_time(tmp_path, small_run):
    words = ("generate", "--hidden", "16", "--model", small_run.path, "--steps", 1)
    assert nnit(*words, "--samples", 70, "--out", tmp_path / "many").returncode == 0
    assert nnit(*words, "--samples", 1, "--out", tmp_path / "one").returncode == 0
    assert len(load_policies(tmp_path / "many")) == 70
    (one,) = (tmp_path / "one").iterdir()
    assert (tmp_path / "many" / one.name).read_bytes() == one.read_bytes()


def test_a_runs_summary_names_the_failures_of_every_task(tmp_path, capsys):
    summary = {"kind": "teacher", "method": "teachers", "low": 0.0, "high": 1.0}
    figures = {"failures": {"nnit_8_0_0": "why"}, "summaries": [summary | {"success_once": 0.5}]}
    pipeline = Pipeline(load_config(ROOT / "configs/smoke.yaml"), tmp_path)
    manifest = {"key": {"config": {}}, "figures": {"tasks": {}}}
    for task in pipeline.config.tasks:
        manifest["figures"]["tasks"][task] = figures
    write_json(tmp_path / "evaluate" / "manifest.json", manifest)
    with pytest.raises(typer.Exit) as end:
        _summary(pipeline)
    assert end.value.exit_code == 3
    assert capsys.readouterr().out.count("not measured: nnit_8_0_0: why") == 2
