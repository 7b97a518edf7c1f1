"""The manifest that vouches for a stage: what it was made from, and what came of it."""

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnit_dist.artifacts.legacy import upgrade_config
from nnit_dist.artifacts.run_directory import MANIFEST
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash, read_json, write_json
from nnit_dist.core.storage import path_of

_KEY = ".key.json"
_VERSIONED = ("nnit_dist", "torch", "ray", "mani_skill", "sapien", "gymnasium", "numpy")


class StageManifest:
    """A directory that one stage fills, and the manifest that it writes last.

    The manifest holds what the stage was made from (its key). A stage whose manifest has the same
    key is done. One without a manifest is unfinished and goes on. One with another key belongs to
    another run and is never overwritten, unless it is `repeatable`: a stage that only measures or
    draws what others wrote is done again.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        config: dict[str, Any],
        inputs: dict[str, Path],
        repeatable: bool = False,
    ) -> None:
        self.name, self.directory, self.repeatable = name, path_of(directory), repeatable
        self.key: dict[str, Any] = {
            "config": config,
            "inputs": {label: content_hash(path) for label, path in inputs.items()},
        }

    def is_done(self) -> bool:
        """Whether the stage is finished for exactly this config and these inputs.

        Raises:
            NnitError: the directory belongs to another config or other inputs.
        """
        other = self._other_key()
        if other and not self.repeatable:
            raise NnitError(
                f"{self.directory} holds the {self.name} stage of another run "
                f"({_difference(*_comparable(other, self.key))}). Choose another output directory "
                "(`--out`), or delete this one to start again."
            )
        return not other and (self.directory / MANIFEST).exists()

    def begin(self) -> None:
        """Claim the directory for this key, or go on in it."""
        if self._other_key():
            for name in (MANIFEST, _KEY):
                (self.directory / name).unlink(missing_ok=True)
        path, spent = self.directory / _KEY, 0.0
        if path.exists():
            # An earlier try worked until it wrote its last file; what came after is not work.
            earlier = read_json(path)
            spent = earlier["spent"] + _last_write(self.directory) - earlier["started"]
        write_json(path, {"key": self.key, "started": time.time(), "spent": spent})

    def finish(self, figures: Mapping[str, object]) -> dict[str, Any]:
        """Write the manifest; from now on the stage counts as done."""
        begun = read_json(self.directory / _KEY)
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

    def _other_key(self) -> dict[str, Any] | None:
        """The key that the directory belongs to, if it is not this one."""
        for name in (MANIFEST, _KEY):
            path = self.directory / name
            if path.exists():
                known, wanted = _comparable(read_json(path)["key"], self.key)
                if known != wanted:
                    return known
        return None


def _comparable(known: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict, dict]:
    """Two keys under today's names, in what both have: older versions read more, or less.

    A setting that an older version did not know yet is None.
    """
    configs = [upgrade_config(key["config"]) for key in (known, wanted)]
    common = configs[0].keys() & configs[1].keys()
    first, second = (
        _without_none(key | {"config": {name: config[name] for name in common}})
        for key, config in zip((known, wanted), configs, strict=True)
    )
    return first, second


def _last_write(directory: Path) -> float:
    """When the newest file below a directory was written, in seconds since the epoch."""
    newest = 0.0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a process that is ending cleans up
            newest = max(newest, path.stat().st_mtime)
    return newest


def _without_none(key: Any) -> Any:
    if not isinstance(key, dict):
        return key
    return {name: _without_none(value) for name, value in key.items() if value is not None}


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
