"""Baselines that are trained: each learns, is kept, and writes unseen topologies."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nnit_dist.baselines.rivals import Rivals
from nnit_dist.errors import NnitError
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.source import AlignedSource
from nnit_dist.nnit.train import NNiTConfig
from nnit_dist.nnit.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory, sampler):
    """A run directory as the pipeline leaves it: small, its model hardly trained."""
    out = tmp_path_factory.mktemp("run")
    seen = [(8,), (32,), (16, 8), (32, 32)]
    sampler = replace(sampler, seen=seen, success=torch.rand(2, 4))
    (out / "align").mkdir()
    (out / "train").mkdir()
    sampler.save(out / "align" / "ghn.safetensors")
    rng = np.random.default_rng(0)
    obs = {f"obs.{i}": rng.normal(size=(80, 35)).astype(np.float32) for i in range(2)}
    targets = {f"target.{i}": np.tanh(obs[f"obs.{i}"][:, :8]) for i in range(2)}
    save_file(obs | targets, out / "align" / "states-0.safetensors")
    nnit = {"transformer": {"width": 32, "depth": 1, "heads": 2}, "steps": 2, "topologies": 2}
    ghn = {"embed_dim": 16, "channels": [8, 8], "latent_dim": 4}
    align = {"ghn": ghn, "distill": {"steps": 2, "meta_batch": 2, "states": 16}}
    for stage, config in (("align", {"align": align}), ("train", {"nnit": nnit, "seed": 0})):
        text = json.dumps({"key": {"config": config}})
        (out / stage / "manifest.json").write_text(text)
    config = NNiTConfig(**nnit)
    source = AlignedSource(sampler, config, 0)
    trainer = Trainer(config, source, torch.device("cpu"), 0)
    NNiTModel.of(trainer, source).save(out / "train" / "nnit.safetensors")
    return out


@pytest.mark.parametrize("weights", ["independent", "matched", "mlp", "pointwise"])
def test_nnit_on_other_weights_is_trained_once(run, weights, monkeypatch):
    monkeypatch.setattr("nnit_dist.baselines.rivals.INDEPENDENT_STEPS", 3)
    heard = []
    rivals = Rivals(run, lambda name, done, total: heard.append(name))
    first = rivals.nnit(weights).generate((24, 16), 2)
    assert f"NNiT on {weights} weights" in heard
    heard.clear()
    again = rivals.nnit(weights).generate((24, 16), 1)[0]
    assert heard == []
    assert np.array_equal(first[0].flat(), again.flat())
    assert again.id == f"nnit_{weights}_24x16_0_0"
    assert again.source == f"nnit_{weights}"


def test_flat_diffusion_is_trained_once(run):
    flat = Rivals(run).flat()
    again = Rivals(run, lambda *heard: pytest.fail("trained again")).flat()
    one, two = (f.generate((16, 8), 1)[0].flat() for f in (flat, again))
    assert np.array_equal(one, two)


def test_another_run_has_rivals_of_its_own(run, sampler, tmp_path):
    shutil.copytree(run, tmp_path / "again", ignore=shutil.ignore_patterns("rivals"))
    same = Rivals(tmp_path / "again").out.name
    assert same == Rivals(run).out.name
    sampler.save(tmp_path / "again" / "align" / "ghn.safetensors")
    assert Rivals(tmp_path / "again").out.name != same


def test_a_run_without_states_is_refused(tmp_path):
    (tmp_path / "align").mkdir()
    with pytest.raises(NnitError, match="lacks align/states"):
        Rivals(tmp_path)
