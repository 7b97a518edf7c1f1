"""Model files: safetensors with metadata, of the hypernetwork and of NNiT."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nnit_dist.artifacts.legacy import OLDER_FORMATS, upgrade_model
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors, write_atomic
from nnit_dist.core.storage import local_file


def write_model(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write one file, whole or not at all; equal models have equal files."""
    data = canonical_safetensors(save(tensors, metadata))
    return write_atomic(path, lambda partial: partial.write_bytes(data))


def read_model(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a model file, those of an older format under today's names.

    Raises:
        NnitError: it is missing, damaged, or of another format.
    """
    try:
        with local_file(path) as local, safe_open(str(local), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NnitError(f"there is no model file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise NnitError(f"{path} is not a readable model file ({error}).") from None
    found = metadata.get("format", "none")
    if found != expected and OLDER_FORMATS.get(found) != expected:
        raise NnitError(f"{path} has format {found!r}; expected {expected!r}.")
    return upgrade_model(tensors, metadata)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
