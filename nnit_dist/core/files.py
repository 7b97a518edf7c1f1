"""Reading and writing artifacts. A file is written completely or not at all."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import on_disk, upload

# A JSON object whose fields only its reader knows: sections of a configuration, figures of a stage.
JsonObject: TypeAlias = dict[str, Any]
MOST_HEADER_BYTES = 16 << 20  # of a safetensors file: names, shapes and metadata


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary_path)`, then move the finished file to `path`, which is returned.

    Raises:
        NnitError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    if not on_disk(path):
        return _upload(path, write)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        return partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise NnitError(f"cannot write {path}: {error.strerror or error}.") from error


def _upload(path: Path, write: Callable[[Path], object]) -> Path:
    with tempfile.TemporaryDirectory() as directory:
        partial = Path(directory) / path.name
        write(partial)
        try:
            upload(partial, path)
        except Exception as error:  # each object store's library has its own errors
            raise NnitError(f"cannot write {path}: {error}.") from error
    return path


def copy(source: Path, target: Path) -> Path:
    """Copy a file; either path may be in an object store."""
    return write_atomic(target, lambda partial: partial.write_bytes(source.read_bytes()))


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON with sorted keys.

    Raises:
        NnitError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    return write_atomic(path, lambda partial: partial.write_text(text))


def canonical_safetensors(data: bytes) -> bytes:
    """The same safetensors file with a sorted header.

    The library's order of metadata differs from process to process, so without this equal models
    would have files of different hashes.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def check_safetensors_size(local: Path, shown: Path, most_bytes: int) -> None:
    """Raise NnitError if a safetensors file is too large to be read, or its header is.

    Args:
        shown: the name of the file in the message.
    """
    if local.stat().st_size > most_bytes:
        raise NnitError(f"{shown} has more than {most_bytes >> 20} MB, too much for such a file.")
    with local.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MOST_HEADER_BYTES < header <= local.stat().st_size:
        raise NnitError(
            f"{shown} has a header of more than {MOST_HEADER_BYTES >> 20} MB, too much for such a "
            "file."
        )


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        NnitError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise NnitError(f"there is no {path}.") from None
    except (ValueError, RecursionError) as error:
        raise NnitError(f"{path} is damaged: {error}. Delete it to redo its stage.") from None


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of all names and contents below a directory.

    Files whose names begin with a dot do not count: killed processes leave them unfinished.
    """
    digest = hashlib.sha256()
    visible = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = [path] if path.is_file() else sorted(visible)
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
