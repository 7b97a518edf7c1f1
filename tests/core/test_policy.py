import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors import torch as torch_file
from safetensors.numpy import save_file
from support.networks import random_policy
from torch import nn

from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy, load_policies, load_policy, save_policy, unflatten
from nnit_dist.core.topology import ACTIVATIONS

hiddens = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)


@settings(max_examples=25, deadline=None)
@given(hidden=hiddens)
def test_file_round_trip(hidden, tmp_path_factory):
    policy = random_policy(hidden, policy_id="one")
    policy.metadata["parent"] = "x"
    path = save_policy(policy, tmp_path_factory.mktemp("p") / "one.safetensors")
    back = load_policy(path)
    assert np.array_equal(back.flat(), policy.flat())
    assert (back.topology, back.task, back.source, back.id, back.metadata) == (
        policy.topology,
        policy.task,
        policy.source,
        policy.id,
        policy.metadata,
    )


def test_flat_weights_round_trip():
    policy = random_policy((24, 8, 16))
    layers = unflatten(policy.flat(), policy.topology)
    assert all(
        np.array_equal(a, b)
        for x, y in zip(layers, policy.layers, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_forward_is_that_of_torch():
    policy = random_policy((16, 24))
    modules = []
    for weight, bias in policy.layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        modules += [linear, torch.nn.Tanh()]
    obs = np.random.default_rng(0).normal(size=(5, 35)).astype(np.float32)
    expected = torch.nn.Sequential(*modules[:-1])(torch.from_numpy(obs)).detach().numpy()
    assert np.allclose(policy.forward(obs), expected, atol=1e-5)
    assert np.allclose(policy.act(obs), np.clip(expected, -1, 1), atol=1e-5)


def test_input_norm_folds_to_the_same_function_and_back():
    rng = np.random.default_rng(0)
    observations = rng.normal(2.0, 3.0, (200, 35)).astype(np.float32)
    norm = ObservationNormalizer.fit(observations)
    inner = random_policy((16, 8))
    folded = Policy(inner.topology, norm.fold(inner.layers), inner.task, "ghn")
    assert np.allclose(
        folded.forward(observations), inner.forward(norm.apply(observations)), atol=1e-4
    )
    back = norm.unfold(folded.layers)
    assert np.allclose(back[0][0], inner.layers[0][0], atol=1e-5)
    assert np.allclose(back[0][1], inner.layers[0][1], atol=1e-4)


def _write(path, **metadata):
    policy = random_policy()
    tensors = {}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    good = {
        "format": "nnit.policy/1",
        "task": policy.task,
        "control_mode": "x",
        "source": "nnit",
        "hidden": json.dumps([16, 8]),
        "activation": "tanh",
        "id": "p",
    }
    save_file(tensors, path, metadata=good | metadata)
    return path


def test_truncated_file(tmp_path):
    path = save_policy(random_policy(), tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NnitError, match="may be truncated"):
        load_policy(path)


def test_other_format(tmp_path):
    with pytest.raises(NnitError, match="expected 'nnit.policy/1'"):
        load_policy(_write(tmp_path / "p.safetensors", format="other/3"))


@pytest.mark.parametrize("hidden", ["[16, 9]", "[16]", "[16, 8, 8]", "nonsense"])
def test_shapes_that_contradict_the_metadata(tmp_path, hidden):
    with pytest.raises(NnitError, match=r"p\.safetensors"):
        load_policy(_write(tmp_path / "p.safetensors", hidden=hidden))


def test_nan_weights_are_refused(tmp_path):
    policy = random_policy()
    policy.layers[1][0][0, 0] = np.nan
    with pytest.raises(NnitError, match="NaN or infinite weights in layer 1"):
        load_policy(save_policy(policy, tmp_path / "p.safetensors"))


def test_two_files_with_one_id(tmp_path):
    for name in ("a", "b"):
        save_policy(random_policy(policy_id="same"), tmp_path / f"{name}.safetensors")
    with pytest.raises(NnitError, match="both carry the id 'same'"):
        load_policies(tmp_path)


def test_directory_without_policies(tmp_path):
    with pytest.raises(NnitError, match="no policy files"):
        load_policies(tmp_path)


def rewritten(tmp_path, tensors=None, **metadata):
    """A policy's file with other tensors or metadata."""
    policy = random_policy()
    path = save_policy(policy, tmp_path / "policy.safetensors")
    with safe_open(str(path), framework="pt") as file:
        known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        strings = file.metadata() | metadata
    torch_file.save_file({**known, **(tensors or {})}, path, strings)
    return path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_floats_are_read(dtype, tmp_path):
    policy = random_policy()
    tensors = {
        f"layers.{i}.{name}": torch.from_numpy(values).to(dtype)
        for i, layer in enumerate(policy.layers)
        for name, values in zip(("weight", "bias"), layer, strict=True)
    }
    read = load_policy(rewritten(tmp_path, tensors))
    assert np.allclose(read.flat(), policy.flat(), rtol=0.01, atol=0.01)
    assert read.flat().dtype == np.float32


@pytest.mark.parametrize(
    "hidden", ["16", "null", '["16"]', "[[16]]", "[16.0]", "[true]", "{", "[]"]
)
def test_hidden_widths_that_are_none_are_refused(hidden, tmp_path):
    with pytest.raises(NnitError, match=r"policy\.safetensors"):
        load_policy(rewritten(tmp_path, hidden=hidden))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"layers.0.weight": torch.zeros(35, 16)}, "layers of shapes|lacks or misstates"),
        ({"layers.0.bias": torch.zeros(16, 1)}, "bias a vector"),
        ({"layers.1.weight": torch.zeros(128)}, "a matrix"),
        ({"extra": torch.zeros(2)}, "7 tensors for 3 layers"),
        ({"layers.0.bias": torch.zeros(16, dtype=torch.int8)}, "type I8"),
    ],
)
def test_tensors_that_do_not_fit_say_what_was_found(tensors, expected, tmp_path):
    with pytest.raises(NnitError, match=expected):
        load_policy(rewritten(tmp_path, tensors))


def test_a_torch_checkpoint_is_called_one(tmp_path):
    torch.save({"actor.weight": torch.zeros(2, 2)}, tmp_path / "ckpt.safetensors")
    with pytest.raises(NnitError, match="is a PyTorch checkpoint"):
        load_policy(tmp_path / "ckpt.safetensors")


@pytest.mark.parametrize(
    "obs", [np.zeros(34), np.zeros(()), np.full(35, np.nan), np.full(35, -np.inf)]
)
def test_a_policy_says_what_is_wrong_with_an_observation(obs):
    with pytest.raises(ValueError, match="needs 35 observations|NaN or infinite"):
        random_policy().act(obs)


MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_policy_acts_as_torchs_own_modules(activation, dtype, tmp_path):
    policy = random_policy((16, 8, 8), activation=activation)
    modules = []
    for weight, bias in policy.layers:
        linear = nn.Linear(*weight.T.shape)
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        modules += [linear, MODULES[activation]()]
    network = nn.Sequential(*modules[:-1]).to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    obs = np.random.default_rng(0).normal(0, 30, (50, 35)).astype(dtype)  # far from 0, too
    expected = network(torch.from_numpy(obs)).detach().numpy()
    back = load_policy(save_policy(policy, tmp_path / "p.safetensors"))
    assert back.topology.activation == activation
    assert back.forward(obs).dtype == dtype
    assert np.allclose(back.forward(obs), expected, rtol=1e-5, atol=1e-5)


def test_the_same_weights_with_another_activation_are_another_policy():
    prints = {random_policy(activation=name).fingerprint() for name in ACTIVATIONS}
    assert len(prints) == len(ACTIVATIONS)


def test_what_is_no_policy_is_refused_when_it_is_made(tmp_path):
    policy = random_policy()
    for layers in ([], [(3, 4), (5, 6), (7, 8)]):
        with pytest.raises(NnitError, match="has layers of shapes") as error:
            replace(policy, layers=layers)
        assert "transposed" not in str(error.value)
    with pytest.raises(NnitError, match="transposed"):
        replace(policy, layers=[(weight.T, bias) for weight, bias in policy.layers])
    for strange in (1j, "1"):
        layers = [(np.full(w.shape, strange), b) for w, b in policy.layers]
        with pytest.raises(NnitError, match="must be real numbers"):
            replace(policy, layers=layers)
    for name in ("id", "task"):
        with pytest.raises(NnitError, match="cannot be a name"):
            save_policy(replace(policy, **{name: "../x"}), tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []
