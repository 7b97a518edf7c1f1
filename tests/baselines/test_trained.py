"""Baselines that are trained: each learns, is kept, and writes unseen topologies."""

import shutil

import numpy as np
import pytest
from support.networks import TASK

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.baselines.trained import TrainedBaselines
from nnit_dist.core.errors import NnitError


@pytest.mark.parametrize("weights", ["independent", "matched", "mlp", "pointwise"])
def test_nnit_on_other_weights_is_trained_once(small_run, weights, monkeypatch, tmp_path):
    monkeypatch.setattr("nnit_dist.baselines.trained.INDEPENDENT_STEPS", 3)
    heard = []
    trained_baselines = TrainedBaselines(
        small_run, TASK, tmp_path, lambda name, done, total: heard.append(name)
    )
    first = trained_baselines.nnit(weights).generate((24, 16), 2)
    assert f"NNiT on {weights} weights" in heard
    heard.clear()
    again = trained_baselines.nnit(weights).generate((24, 16), 1)[0]
    assert heard == []
    assert np.array_equal(first[0].flat(), again.flat())
    assert again.id == f"nnit_{weights}_24x16_0_0"
    assert again.source == f"nnit_{weights}"


def test_flat_diffusion_is_trained_once(small_run, tmp_path):
    flat = TrainedBaselines(small_run, TASK, tmp_path).flat()
    again = TrainedBaselines(
        small_run, TASK, tmp_path, lambda *heard: pytest.fail("trained again")
    ).flat()
    one, two = (f.generate((16, 8), 1)[0].flat() for f in (flat, again))
    assert np.array_equal(one, two)


def test_another_run_has_baselines_of_its_own(small_run, sampler, tmp_path):
    again, kept = tmp_path / "again", tmp_path / "baselines"
    shutil.copytree(small_run.path, again)
    same = TrainedBaselines(RunDirectory(again), TASK, kept).out
    assert same == TrainedBaselines(small_run, TASK, kept).out
    sampler.save(again / "align" / "ghn.safetensors")
    assert TrainedBaselines(RunDirectory(again), TASK, kept).out != same


def test_a_run_without_states_is_refused(tmp_path):
    (tmp_path / "align").mkdir()
    with pytest.raises(NnitError, match="lacks align/states"):
        TrainedBaselines(RunDirectory(tmp_path), TASK, tmp_path)


def test_a_killed_training_of_a_baseline_goes_on_to_the_same_end(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("nnit_dist.baselines.trained.SAVE_EVERY", 1)
    unbroken = TrainedBaselines(small_run, TASK, tmp_path / "a").flat().generate((16, 8), 1)[0]

    def kill(name, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrainedBaselines(small_run, TASK, tmp_path / "b", kill).flat()
    heard = []
    resumed = TrainedBaselines(
        small_run, TASK, tmp_path / "b", lambda name, done, total: heard.append(done)
    ).flat()
    assert heard == [2]
    assert np.array_equal(resumed.generate((16, 8), 1)[0].flat(), unbroken.flat())
