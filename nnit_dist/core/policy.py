"""A policy: a topology with its weights, and the file that holds it.

The file is in safetensors format. It holds `layers.{i}.weight` [out, in] and `layers.{i}.bias`
[out] in float32, and metadata: format, task, control_mode, hidden, activation, source, and where
the policy comes from.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors, check_safetensors_size, write_atomic
from nnit_dist.core.names import check_name, name_from
from nnit_dist.core.storage import local_file, path_of
from nnit_dist.core.topology import Activation, Topology, check_activation, hidden_from

FORMAT = "nnit.policy/1"
SUFFIX = ".safetensors"
MOST_BYTES = 256 << 20  # of a policy's file
_NUMPY_KINDS, _TORCH_KINDS = {"F16", "F32", "F64"}, {"BF16", "F8_E4M3", "F8_E5M2"}


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _silu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(0.5 * x))  # x times the sigmoid of x, without overflow


_FUNCTIONS: dict[Activation, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": _elu,
    "silu": _silu,
}


@dataclass
class Policy:
    """An MLP policy. `layers[i]` is (weight [out, in], bias [out]), float32.

    The action is `clip(output, -1, 1)`, in normalized units: -1 and 1 stand for the bounds of the
    control mode's action space, which in most control modes of ManiSkill3 are -1 and 1.
    """

    topology: Topology
    layers: list[tuple[np.ndarray, np.ndarray]]
    task: str
    source: str
    control_mode: str = "pd_joint_delta_pos"
    id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = [(_float32(weight), _float32(bias)) for weight, bias in self.layers]
        shapes = [(weight.shape, bias.shape) for weight, bias in self.layers]
        expected = [((out, fan_in), (out,)) for out, fan_in in self.topology.shapes]
        if shapes != expected:
            # Every bias has as many values as its matrix has columns.
            transposed = bool(shapes) and all(w[1:] == b and len(w) == 2 for w, b in shapes)
            raise NnitError(
                f"policy {self.id!r} has layers of shapes {shapes}, but its topology "
                f"{self.topology.name} needs {expected}."
                + " Its matrices are transposed: they must be [out, in]."
                * transposed
            )

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions [..., act_dim] in [-1, 1] for observations [..., obs_dim].

        Raises:
            ValueError: the observations have another size, or are not finite. (Not NnitError, which
                in a simulator means that it works with no policy.)
        """
        if obs.shape[-1:] != (self.topology.obs_dim,):
            raise ValueError(
                f"policy {self.id!r} needs {self.topology.obs_dim} observations; got an array of "
                f"shape {list(obs.shape)}."
            )
        if not np.isfinite(obs).all():
            raise ValueError(f"policy {self.id!r} got observations that are NaN or infinite.")
        return np.minimum(np.maximum(self.forward(obs), -1.0), 1.0)

    def forward(self, obs: np.ndarray) -> np.ndarray:
        """Outputs before clipping, [..., act_dim], for observations [..., obs_dim]."""
        hidden, activate = obs, _FUNCTIONS[self.topology.activation]
        for weight, bias in self.layers[:-1]:
            hidden = activate(hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        return hidden @ weight.T + bias

    def flat(self) -> np.ndarray:
        """All parameters, layer by layer, weight (row-major) before bias, float32 [num_params]."""
        return np.concatenate([array.ravel() for layer in self.layers for array in layer])

    def fingerprint(self) -> str:
        """Short hash of topology and weights, under which measurements of the policy are kept."""
        digest = hashlib.sha256(repr(self.topology.dims).encode() + self.flat().tobytes())
        if self.topology.activation != "tanh":  # (stored measurements of tanh do not name it)
            digest.update(self.topology.activation.encode())
        return digest.hexdigest()[:16]

    def check_names(self, *, or_none: bool = False) -> "Policy":
        """This policy; NnitError if its id, task or control mode cannot be a name.

        With `or_none` it may have no id yet: a file without one is named for itself.
        """
        if self.id or not or_none:
            check_name(self.id, "id")
        check_name(self.task, "task")
        check_name(self.control_mode, "control mode")
        return self

    def check_finite(self, name: str = "") -> None:
        """Raise NnitError if any weight is NaN or infinite; `name` replaces the id in it."""
        for i, (weight, bias) in enumerate(self.layers):
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise NnitError(
                    f"policy {name or self.id!r} has NaN or infinite weights in layer {i}. "
                    "Generate or export it again."
                )


def _float32(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise NnitError(f"weights must be real numbers; got an array of {array.dtype}.")
    return np.ascontiguousarray(array, dtype=np.float32)


def unflatten(flat: np.ndarray, topology: Topology) -> list[tuple[np.ndarray, np.ndarray]]:
    """The inverse of `Policy.flat`: (weight, bias) of each layer, as views of `flat`.

    Raises:
        NnitError: `flat` has another number of parameters than the topology.
    """
    if flat.size != topology.num_params:
        raise NnitError(
            f"{flat.size} weights do not fit topology {topology.dims}, "
            f"which has {topology.num_params}."
        )
    layers, start = [], 0
    for out, fan_in in topology.shapes:
        weight = flat[start : start + out * fan_in].reshape(out, fan_in)
        start += out * fan_in
        layers.append((weight, flat[start : start + out]))
        start += out
    return layers


def save_policy(policy: Policy, path: Path | str) -> Path:
    """Write a policy file and return its path.

    Raises:
        NnitError: the policy has weights that are not finite or an id that cannot be a name, or
            the file cannot be written.
    """
    return _write(policy_bytes(policy.check_names(or_none=True)), path_of(path))


def policy_bytes(policy: Policy) -> bytes:
    """Contents of a policy's file; NnitError if weights are NaN or infinite."""
    policy.check_finite()
    tensors = {}
    for i, (weight, bias) in enumerate(policy.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    metadata = policy.metadata | {
        "format": FORMAT,
        "task": policy.task,
        "control_mode": policy.control_mode,
        "hidden": json.dumps(list(policy.topology.hidden)),
        "activation": policy.topology.activation,
        "source": policy.source,
        "id": policy.id,
    }
    return canonical_safetensors(safetensors_bytes(tensors, metadata=metadata))


def save_policies(policies: Sequence[Policy], directory: Path, overwrite: bool = False) -> None:
    """Write a policy file `ID.safetensors` for each policy into a directory.

    Raises:
        NnitError: an id cannot be a file name; without `overwrite`, a file exists and differs (then
            nothing is written); or a file cannot be written.
    """
    files = {
        directory / f"{check_name(policy.id, 'id')}{SUFFIX}": policy_bytes(policy)
        for policy in policies
    }
    for path, data in files.items():
        if not overwrite and path.exists() and path.read_bytes() != data:
            raise NnitError(
                f"{path} exists and holds another policy. Name another directory with --out, or "
                "replace it with --overwrite."
            )
    for path, data in files.items():
        _write(data, path)


def _write(data: bytes, path: Path) -> Path:
    return write_atomic(path, lambda partial: partial.write_bytes(data))


def load_policy(path: Path | str) -> Policy:
    """Read a policy file.

    Raises:
        NnitError: the file is missing, truncated, of another format, or has wrong shapes or
            weights that are NaN or infinite.
    """
    path = path_of(path)
    try:
        with local_file(path) as local:
            tensors, metadata = _read(local, path)
    except FileNotFoundError:
        raise NnitError(f"there is no policy file {path}.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise NnitError(
            f"{path} is not a readable safetensors file ({error}). It may be truncated; "
            "generate or copy it again."
        ) from None
    if metadata.get("format") != FORMAT:
        raise NnitError(
            f"{path} has format {metadata.get('format', 'none')!r}; expected {FORMAT!r}. "
            "Policies are written by `nnit generate` and `nnit zoo export`."
        )
    policy = _policy_from(tensors, metadata, path)
    policy.check_finite(str(path))
    return policy


def _read(local: Path, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `path` is its name in messages."""
    check_safetensors_size(local, path, MOST_BYTES)
    with local.open("rb") as begin:
        if begin.read(4) == b"PK\3\4":
            raise NnitError(
                f"{path} is a PyTorch checkpoint, not a safetensors file. Make an "
                "`nnit_dist.Policy` of its weights, and write it with `nnit_dist.save_policy`."
            )
    with safe_open(str(local), framework="numpy") as file:
        names, metadata = list(file.keys()), file.metadata() or {}
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
        if strange := sorted({*kinds.values()} - _NUMPY_KINDS - _TORCH_KINDS):
            raise NnitError(f"{path} has weights of the type {strange[0]}; it must be a float.")
        if not _TORCH_KINDS & {*kinds.values()}:
            return {name: file.get_tensor(name) for name in names}, metadata
    with safe_open(str(local), framework="pt") as file:  # numpy has no such floats
        return {name: file.get_tensor(name).float().numpy() for name in names}, metadata


def _policy_from(tensors: dict, metadata: dict[str, str], path: Path) -> Policy:
    known = {"format", "task", "control_mode", "hidden", "activation", "source", "id"}
    try:
        hidden = hidden_from(json.loads(metadata["hidden"]))
        layers = [
            (tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
            for i in range(len(hidden) + 1)
        ]
        if len(tensors) != 2 * len(layers):
            raise NnitError(f"{len(tensors)} tensors for {len(layers)} layers of {hidden}.")
        if any((weight.ndim, bias.ndim) != (2, 1) for weight, bias in layers):
            raise NnitError("a weight must be a matrix [out, in], and a bias a vector [out].")
        topology = Topology(
            layers[0][0].shape[1],
            hidden,
            layers[-1][0].shape[0],
            check_activation(metadata["activation"]),
        )
        return Policy(
            topology,
            layers,
            task=metadata["task"],
            source=metadata["source"],
            control_mode=metadata["control_mode"],
            id=metadata.get("id") or name_from(path.stem),
            metadata={k: v for k, v in metadata.items() if k not in known},
        ).check_names()
    except (KeyError, IndexError, ValueError, RecursionError) as error:
        raise NnitError(
            f"{path} lacks or misstates {error} of the {FORMAT} contract. Export it again."
        ) from None
    except NnitError as error:
        raise NnitError(f"{path}: {error}") from None


def load_policies(directory: Path | str) -> list[Policy]:
    """All policies of the files below `directory`, sorted by path; a file gives its policy.

    Raises:
        NnitError: there is no file, one cannot be read, or two policies have the same id.
    """
    directory = path_of(directory)
    if directory.is_file():
        return [load_policy(directory)]
    paths = sorted(directory.rglob(f"[!.]*{SUFFIX}"))
    if not paths:
        raise NnitError(f"no policy files (*{SUFFIX}) in {directory}.")
    policies = [load_policy(path) for path in paths]
    seen: dict[str, Path] = {}
    for policy, path in zip(policies, paths, strict=True):
        if policy.id in seen:
            raise NnitError(
                f"{seen[policy.id]} and {path} both carry the id {policy.id!r}. Results are kept "
                "by id; give each file its own."
            )
        seen[policy.id] = path
    return policies
