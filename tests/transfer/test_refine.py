"""Refining: a written policy comes closer to the teacher that it acts most like."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.networks import TASK, changed_task, random_policy
from typer.testing import CliRunner

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.cli.main import app
from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import load_policies, save_policy
from nnit_dist.core.task import DEFAULT_CONTROL_MODE
from nnit_dist.core.topology import ACTIVATIONS
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.model import Teacher
from nnit_dist.transfer.refine import keep_for_refining, load_distillation_data, refine


@pytest.fixture(scope="module")
def distillation_data(sampler):
    """Three teachers with states of their own."""
    rng = np.random.default_rng(0)
    obs = [rng.normal(size=(500, 35)).astype(np.float32) for _ in range(3)]
    return DistillationData.of(
        sampler.current.normalizer, obs, [random_policy((16, 16), seed) for seed in range(3)]
    )


def near(seed: int, noise: float, policy_id: str):
    """A policy that acts nearly as the teacher of this seed does."""
    teacher, rng = random_policy((16, 16), seed, policy_id), np.random.default_rng(9)
    shaken = [
        (w + noise * w.std() * rng.normal(size=w.shape), b + noise * rng.normal(size=b.shape))
        for w, b in teacher.layers
    ]
    return replace(teacher, layers=shaken, source="nnit")


def test_policies_come_closer_to_their_own_teachers(distillation_data):
    written = [near(seed, 0.2, f"p{seed}") for seed in (2, 0)]
    refined, errors = refine(written, distillation_data, steps=400)
    rng = np.random.default_rng(1)
    raw = distillation_data.norm.mean + rng.normal(size=(200, 35)) * distillation_data.norm.std
    for seed, before, after in zip((2, 0), written, refined, strict=True):
        teacher = random_policy((16, 16), seed)
        mse = [
            np.mean([np.square(policy.act(obs) - teacher.act(obs)) for obs in raw])
            for policy in (before, after)
        ]
        assert mse[1] < 0.5 * mse[0]
        assert after.topology == before.topology
        assert (after.source, after.id) == ("refined", f"{before.id}_refined")
        assert after.metadata == {"refined_from": "nnit", "steps": "400"}
    assert all(after < 0.5 * before for before, after in errors)
    again, _ = refine(written, distillation_data, steps=400)
    assert all(a.fingerprint() == b.fingerprint() for a, b in zip(refined, again, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_policies_of_any_activation_are_refined(activation, distillation_data):
    policy = random_policy((24, 24), 5, activation=activation)
    (refined,), ((before, after),) = refine([policy], distillation_data, steps=300)
    assert refined.topology == policy.topology
    assert after < 0.5 * before


def test_actions_of_a_mix_are_its_teachers_averaged(distillation_data):
    teacher_weights = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    obs, actions = distillation_data.draw(teacher_weights, 50, torch.Generator().manual_seed(0))
    teachers = [random_policy((16, 16), seed) for seed in range(3)]
    raw = distillation_data.norm.mean + obs.numpy() * distillation_data.norm.std
    alone = np.stack([[teacher.act(o) for o in raw.reshape(-1, 35)] for teacher in teachers])
    expected = np.einsum("bt,tbsa->bsa", teacher_weights, alone.reshape(3, 2, 50, 8))
    assert np.allclose(actions, expected, atol=1e-4)


def test_only_the_best_teachers_are_kept(sampler, distillation_data, tmp_path):
    teachers = [Teacher(name, name == "a") for name in "abc"]
    run = RunDirectory(tmp_path)
    best = changed_task(sampler, teachers=teachers)
    keep_for_refining(best, distillation_data, run.distillation_data(TASK))
    kept = load_distillation_data(run, TASK, DEFAULT_CONTROL_MODE)
    assert len(kept.teachers) == 1
    assert torch.equal(kept.teachers.weights[0][0], distillation_data.teachers.weights[0][0])
    assert len(kept.obs[0]) == 500


def test_the_command_refines_a_directory_and_tells_what_it_lacks(distillation_data, tmp_path):
    policies, run = tmp_path / "policies", tmp_path / "run"
    save_policy(near(0, 0.2, "p"), policies / "p.safetensors")
    words = ["refine", str(policies), "--run", str(run), "--steps", "50"]
    with pytest.raises(NnitError, match="there is no .*distillation-PushCube-v1.safetensors"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    distillation_data.save(RunDirectory(run).distillation_data(TASK))
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    (policy,) = load_policies(tmp_path / "policies-refined")
    assert policy.source == "refined"
    assert "wrote 1 policy to" in said.output
    save_policy(random_policy(policy_id="other", act_dim=4), policies / "other.safetensors")
    with pytest.raises(NnitError, match="other has 35 observations and 4 actions"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    save_policy(
        replace(random_policy(policy_id="p2"), task="PickCube-v1"), policies / "p2.safetensors"
    )
    with pytest.raises(NnitError, match="refine those of one at a time"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_from_scratch_the_same_teachers_are_learnt_without_the_start(distillation_data):
    written = [near(0, 0.1, "p")]
    (kept, scratch), errors = zip(
        *(
            (refined[0], error[0])
            for refined, error in (
                refine(written, distillation_data, steps=20, scratch=scratch)
                for scratch in (False, True)
            )
        ),
        strict=True,
    )
    assert errors[0][1] < 0.5 * errors[1][1]
    start, near_by, far = (p.layers[0][0].ravel() for p in (written[0], kept, scratch))
    assert np.corrcoef(start, near_by)[0, 1] > 0.9
    assert abs(np.corrcoef(start, far)[0, 1]) < 0.3
