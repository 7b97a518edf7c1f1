"""What a model file claims counts only if its tensors have it."""

import json
import resource
from dataclasses import dataclass, field

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nnit_dist.artifacts.model_file import MOST_BYTES
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import MOST_HEADER_BYTES
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import NNiTModel


@dataclass
class Contents:
    """Tensors and metadata of a model file, to be changed."""

    tensors: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    @classmethod
    def of(cls, path):
        with safe_open(str(path), framework="pt") as file:
            return cls(load_file(path), file.metadata())

    def change(self, name, **values):
        """Change fields of a JSON object of the metadata."""
        self.metadata[name] = json.dumps(json.loads(self.metadata[name]) | values)

    def task(self, **values):
        """Change fields of the first task."""
        tasks = json.loads(self.metadata["tasks"])
        tasks[0]["task"] |= values
        self.metadata["tasks"] = json.dumps(tasks)

    def write(self, path):
        save_file(self.tensors, path, self.metadata)
        return path


NNIT_CHANGES = {
    "wide": lambda c: c.change("config", width=1 << 16, heads=1),
    "deep": lambda c: c.change("config", depth=1000),
    "deeper than any": lambda c: c.change("config", depth=10**9),
    "no heads": lambda c: c.change("config", heads=0),
    "unknown size": lambda c: c.change("config", layers=3),
    "vocabulary": lambda c: c.metadata.update(vocabulary='[["PushCube-v1"], 8, 1000000000, 2]'),
    "patch": lambda c: c.metadata.update(vocabulary='[["PushCube-v1"], 9999999, 32, 2]'),
    "no vocabulary": lambda c: c.metadata.pop("vocabulary"),
    "other tasks": lambda c: c.metadata.update(vocabulary='[["A-v1", "B-v1"], 8, 32, 2]'),
    "observations": lambda c: c.task(obs_dim=60_000),
    "actions": lambda c: c.task(act_dim=10**12),
    "text": lambda c: c.task(obs_dim="35"),
    "nested": lambda c: c.metadata.update(tasks="[" * 100_000),
    "seen": lambda c: c.metadata.update(seen="[[]]"),
    "seen text": lambda c: c.metadata.update(seen='[["16"]]'),
    "NaN": lambda c: c.tensors["network.final.bias"].fill_(torch.nan),
    "integers": lambda c: c.tensors.update({"network.final.bias": torch.zeros(64).int()}),
    "lacks": lambda c: c.tensors.pop("network.final.bias"),
    "too many": lambda c: c.tensors.update(x=torch.zeros(1), **{"network.x": torch.zeros(1)}),
    "no normalizer": lambda c: c.tensors.pop("norm.0.mean"),
    "zero std": lambda c: c.tensors["norm.0.std"].zero_(),
    "tokens": lambda c: c.tensors.update({"token_normalizer.mean": torch.zeros(1, 9)}),
}
GHN_CHANGES = {
    "wide": lambda c: c.change("config", embed_dim=10**7),
    "channels": lambda c: c.change("config", channels=[10**6, 10**6]),
    "many channels": lambda c: c.change("config", channels=[8] * 10_000),
    "latent": lambda c: c.change("config", latent_dim=10**10),
    "smooth": lambda c: c.change("config", smoothness=1e300),
    "decoder": lambda c: c.change("config", decoder="mlp"),
    "seen": lambda c: c.metadata.update(seen="[[16384]]"),
    "beyond": lambda c: c.metadata.update(seen="[[1000000000]]"),
    "observations": lambda c: c.task(obs_dim=65_536),
    "no teachers": lambda c: c.metadata.update(
        tasks=json.dumps([json.loads(c.metadata["tasks"])[0] | {"teachers": []}])
    ),
    "success": lambda c: c.tensors.update({"success.0": torch.zeros(7)}),
    "empty latents": lambda c: c.tensors.update({"latents.0.mean": torch.zeros(0, 10**9)}),
    "no config": lambda c: c.metadata.pop("config"),
}


def _refused(load, path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NnitError) as error:
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("change", NNIT_CHANGES)
def test_an_nnit_that_is_not_what_it_claims_is_refused(change, small_run, tmp_path):
    contents = Contents.of(small_run.nnit())
    NNIT_CHANGES[change](contents)
    _refused(NNiTModel.load, contents.write(tmp_path / "nnit.safetensors"))


@pytest.mark.parametrize("change", GHN_CHANGES)
def test_a_hypernetwork_that_is_not_what_it_claims_is_refused(change, small_run, tmp_path):
    contents = Contents.of(small_run.hypernet())
    GHN_CHANGES[change](contents)
    _refused(HypernetModel.load, contents.write(tmp_path / "ghn.safetensors"))


def test_files_too_large_for_a_model_are_not_read(tmp_path):
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert "more than 1024 MB" in _refused(NNiTModel.load, large)
    header = tmp_path / "header.safetensors"
    with header.open("wb") as file:
        file.write((MOST_HEADER_BYTES + 8).to_bytes(8, "little"))
        file.truncate(MOST_HEADER_BYTES + 100)
    assert "header" in _refused(NNiTModel.load, header)
