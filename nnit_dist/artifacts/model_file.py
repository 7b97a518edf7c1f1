"""Model files: safetensors with metadata, of the hypernetwork and of NNiT."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnit_dist.artifacts.legacy import OLDER_FORMATS, upgrade_model
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors, check_safetensors_size, write_atomic
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.storage import local_file

MOST_BYTES = 1 << 30  # of a model file
M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")


def write_model(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write one file, whole or not at all; equal models have equal files."""
    data = canonical_safetensors(save(tensors, metadata))
    return write_atomic(path, lambda partial: partial.write_bytes(data))


def read_model(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a model file, those of an older format under today's names.

    Raises:
        NnitError: it is missing, damaged, too large, of another format, or has weights that are
            not finite numbers.
    """
    try:
        with local_file(path) as local:
            check_safetensors_size(local, path, MOST_BYTES)
            with safe_open(str(local), framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies: what is mapped from a file goes with it, and torch wants it aligned.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NnitError(f"there is no model file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise NnitError(f"{path} is not a readable model file ({error}).") from None
    found = metadata.get("format", "none")
    if found != expected and OLDER_FORMATS.get(found) != expected:
        raise NnitError(f"{path} has format {found[:40]!r}; expected {expected!r}.")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            raise NnitError(f"{path} has {name[:80]!r} of the type {tensor.dtype}, not floats.")
        if not tensor.float().isfinite().all():  # (float8 has no `isfinite`)
            raise NnitError(f"{path} has NaN or infinite weights in {name[:80]!r}.")
    return upgrade_model(tensors, metadata)


@contextmanager
def described_in(path: Path) -> Iterator[None]:
    """Read what a model file says of its model; whatever does not fit becomes an NnitError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, NnitError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise NnitError(
            f"{path} does not hold the model that it describes ({reason}). Copy it or train again."
        ) from None


def read_record(kind: type[R], value: object) -> R:
    """A dataclass, or another type, of a value from JSON; ValueError if it is none."""
    try:  # (As JSON: pydantic's strictness wants instances of dataclasses otherwise.)
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{getattr(kind, '__name__', kind)}: {where} {first['msg']}") from None


class _NoInitialization(TorchFunctionMode):
    """Leaves parameters as they are: on `meta`, initializing takes a second and does nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(make: Callable[[], M], tensors: dict[str, Tensor]) -> M:
    """The module that `make` makes, with these tensors as its state.

    It is made on the device `meta`, without memory: its sizes come from a file, and count only
    if the tensors have them.

    Raises:
        ValueError: tensors are missing, superfluous, or of other shapes.
    """
    with torch.device("meta"), _NoInitialization():
        module = make()
    needed = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for name in sorted(needed.keys() | tensors.keys()):
        found = list(tensors[name].shape) if name in tensors else "missing"
        wanted = list(needed[name]) if name in needed else "no such tensor"
        if found != wanted:
            raise ValueError(f"{name[:80]} is {found}; expected {wanted}")
    module.load_state_dict({name: tensors[name].float() for name in needed}, assign=True)
    return module


def read_normalizer(tensors: dict[str, Tensor], task: int, obs_dim: int) -> ObservationNormalizer:
    """The normalizer of a task's observations, by the task's index.

    Raises:
        KeyError, ValueError: the file has none, or one of another size.
    """
    mean, std = (tensors[f"norm.{task}.{name}"].float() for name in ("mean", "std"))
    if mean.shape != (obs_dim,) or std.shape != (obs_dim,) or not (std > 0).all():
        raise ValueError(f"the normalizer of task {task} does not fit {obs_dim} observations")
    return ObservationNormalizer(mean.numpy(), std.numpy())


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
