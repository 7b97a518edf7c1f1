"""Artefacts on disk: files that are whole or absent, and the manifest that vouches for a stage."""

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnit_dist.errors import NnitError
from nnit_dist.storage import on_disk, path_of, upload

MANIFEST = "manifest.json"
_VERSIONED = ("nnit_dist", "torch", "ray", "mani_skill", "sapien", "gymnasium", "numpy")


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


class Stage:
    """A directory that one stage fills, and the manifest written last.

    The manifest holds what the stage was made from (its key). A stage whose manifest has
    the same key is done; one without a manifest is unfinished and goes on; one with
    another key belongs to another run and is never overwritten.
    """

    def __init__(self, name: str, directory: Path, config: dict, inputs: dict[str, Path]) -> None:
        self.name = name
        self.directory = path_of(directory)
        self.key: dict[str, Any] = {
            "config": config,
            "inputs": {label: content_hash(path) for label, path in inputs.items()},
        }

    def is_done(self) -> bool:
        """Whether the stage is finished for exactly this config and these inputs.

        Raises:
            NnitError: the directory belongs to another config or other inputs.
        """
        for path in (self.directory / MANIFEST, self.directory / ".key.json"):
            if path.exists() and _told(read_json(path)["key"]) != _told(self.key):
                raise NnitError(
                    f"{self.directory} holds the {self.name} stage of another run "
                    f"({_difference(read_json(path)['key'], self.key)}). Choose another output "
                    "directory (`--out`), or delete this one to start again."
                )
        return (self.directory / MANIFEST).exists()

    def begin(self) -> None:
        """Claim the directory for this key, or go on in it."""
        path, spent = self.directory / ".key.json", 0.0
        if path.exists():
            # An earlier try worked until it wrote its last file; what came after is not work.
            earlier = read_json(path)
            spent = earlier["spent"] + _last_write(self.directory) - earlier["started"]
        write_json(path, {"key": self.key, "started": time.time(), "spent": spent})

    def finish(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest; from now on the stage counts as done."""
        begun = read_json(self.directory / ".key.json")
        manifest = {
            "stage": self.name,
            "key": self.key,
            "figures": figures,
            "seconds": round(begun["spent"] + time.time() - begun["started"], 1),
            "versions": {package: version(package) for package in _VERSIONED},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        write_json(self.directory / MANIFEST, manifest)
        return manifest


def _last_write(directory: Path) -> float:
    """When the newest file below a directory was written."""
    newest = 0.0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a process that is ending cleans up
            newest = max(newest, path.stat().st_mtime)
    return newest


def _told(key: Any) -> Any:
    """A key without what is None: a setting that an older run did not know yet."""
    if not isinstance(key, dict):
        return key
    return {name: _told(value) for name, value in key.items() if value is not None}


def _difference(old: dict, new: dict, path: str = "") -> str:
    """The first place where two keys differ, as `config.seed: 0, now 1`."""
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return _difference(a, b, f"{path}{name}.")
        return f"{path}{name}: {a}, now {b}"
    return "unchanged"
