"""Artefacts on disk: files that are whole or absent, and the manifest that vouches for a stage."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import on_disk, upload


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary path)`, then put what it wrote at `path`, whole or not at all.

    Raises:
        NnitError: it cannot be written; what was at `path` before is still there.
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
        except Exception as error:  # of whatever library the store is reached by
            raise NnitError(f"cannot write {path}: {error}.") from error
    return path


def copy(source: Path, target: Path) -> Path:
    """Copy a file, from and to wherever."""
    return write_atomic(target, lambda partial: partial.write_bytes(source.read_bytes()))


def write_json(path: Path, value: Any) -> Path:
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    return write_atomic(path, lambda partial: partial.write_text(text))


def canonical_safetensors(data: bytes) -> bytes:
    """The same safetensors file with its header in sorted order.

    The library writes metadata in an order that differs from process to process, and equal
    models would have files of different hashes.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise NnitError(f"there is no {path}.") from None
    except ValueError as error:
        raise NnitError(f"{path} is damaged: {error}. Delete it to redo its stage.") from None


def content_hash(path: Path) -> str:
    """SHA-256 over a file, or over the names and contents below a directory.

    Files whose names begin with a dot are none: a killed process began them.
    """
    digest = hashlib.sha256()
    inside = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = [path] if path.is_file() else sorted(inside)
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
