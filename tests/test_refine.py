"""Refining: a written policy comes closer to the teacher that it acts most like."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TASK, random_policy
from typer.testing import CliRunner

from nnit_dist.align.lessons import Lessons
from nnit_dist.align.refine import lessons_file, load_lessons, refine
from nnit_dist.align.run import save_lessons
from nnit_dist.align.sampler import Teacher
from nnit_dist.cli import app
from nnit_dist.errors import NnitError
from nnit_dist.policy import load_policies, save_policy


@pytest.fixture(scope="module")
def lessons(sampler):
    """Three teachers with states of their own."""
    rng = np.random.default_rng(0)
    obs = [rng.normal(size=(500, 35)).astype(np.float32) for _ in range(3)]
    return Lessons.of(sampler.norm, obs, [random_policy((16, 16), seed) for seed in range(3)])


def near(seed: int, noise: float, policy_id: str):
    """A policy that acts nearly as the teacher of this seed does."""
    teacher, rng = random_policy((16, 16), seed, policy_id), np.random.default_rng(9)
    shaken = [
        (w + noise * w.std() * rng.normal(size=w.shape), b + noise * rng.normal(size=b.shape))
        for w, b in teacher.layers
    ]
    return replace(teacher, layers=shaken, source="nnit")


def test_policies_come_closer_to_their_own_teachers(lessons):
    written = [near(seed, 0.2, f"p{seed}") for seed in (2, 0)]
    refined, errors = refine(written, lessons, steps=400)
    rng = np.random.default_rng(1)
    raw = lessons.norm.mean + rng.normal(size=(200, 35)) * lessons.norm.std
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
    again, _ = refine(written, lessons, steps=400)
    assert all(a.fingerprint() == b.fingerprint() for a, b in zip(refined, again, strict=True))


def test_actions_of_a_mix_are_its_teachers_averaged(lessons):
    mixes = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    obs, actions = lessons.draw(mixes, 50, torch.Generator().manual_seed(0))
    teachers = [random_policy((16, 16), seed) for seed in range(3)]
    raw = lessons.norm.mean + obs.numpy() * lessons.norm.std
    alone = np.stack([[teacher.act(o) for o in raw.reshape(-1, 35)] for teacher in teachers])
    expected = np.einsum("bt,tbsa->bsa", mixes, alone.reshape(3, 2, 50, 8))
    assert np.allclose(actions, expected, atol=1e-4)


def test_only_the_best_teachers_are_kept(sampler, lessons, tmp_path):
    teachers = [Teacher(name, name == "a") for name in "abc"]
    save_lessons(replace(sampler, teachers=teachers), lessons, tmp_path / "align")
    kept = load_lessons(tmp_path, TASK)
    assert len(kept.teachers) == 1
    assert torch.equal(kept.teachers[0][0][0], lessons.teachers[0][0][0])
    assert len(kept.obs[0]) == 500


def test_the_command_refines_a_directory_and_tells_what_it_lacks(lessons, tmp_path):
    policies, run = tmp_path / "policies", tmp_path / "run"
    save_policy(near(0, 0.2, "p"), policies / "p.safetensors")
    words = ["refine", str(policies), "--run", str(run), "--steps", "50"]
    with pytest.raises(NnitError, match="there is no .*lessons-PushCube-v1.safetensors"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    lessons.save(run / "align" / lessons_file(TASK))
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
    with pytest.raises(NnitError, match="PickCube-v1, PushCube-v1; refine one task at a time"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_from_scratch_the_same_teachers_are_learnt_without_the_start(lessons):
    written = [near(0, 0.1, "p")]
    (kept, scratch), errors = zip(
        *(
            (refined[0], error[0])
            for refined, error in (
                refine(written, lessons, steps=20, scratch=scratch) for scratch in (False, True)
            )
        ),
        strict=True,
    )
    assert errors[0][1] < 0.5 * errors[1][1]
    start, near_by, far = (p.layers[0][0].ravel() for p in (written[0], kept, scratch))
    assert np.corrcoef(start, near_by)[0, 1] > 0.9
    assert abs(np.corrcoef(start, far)[0, 1]) < 0.3
