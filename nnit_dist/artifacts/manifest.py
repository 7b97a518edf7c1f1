"""The manifest of a stage: what the stage was made from, and its results."""

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnit_dist.artifacts.legacy import upgrade_config
from nnit_dist.artifacts.records import Manifest, StageClaim, StageKey
from nnit_dist.artifacts.run_directory import MANIFEST
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import JsonObject, content_hash, read_json, write_json
from nnit_dist.core.storage import path_of

_KEY = ".key.json"
_VERSIONED = ("nnit_dist", "torch", "ray", "mani_skill", "sapien", "gymnasium", "numpy")


class StageManifest:
    """The directory of a stage, and the manifest that the stage writes last.

    The manifest holds the stage's key: the configuration and inputs that it was made from. A stage
    is done if its manifest has the same key. Without a manifest it is unfinished and can be
    resumed. A directory with another key belongs to another run. It is never overwritten, except by
    a `repeatable` stage, which only measures or draws what other stages wrote.

    Args:
        config: the sections of the configuration that the stage reads.
        inputs: files and directories that the stage reads, by label.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        config: JsonObject,
        inputs: dict[str, Path],
        *,
        repeatable: bool = False,
    ) -> None:
        self.name, self.directory, self.repeatable = name, path_of(directory), repeatable
        self.key: StageKey = {
            "config": config,
            "inputs": {label: content_hash(path) for label, path in inputs.items()},
        }

    def is_done(self) -> bool:
        """Whether the stage is finished with this key.

        Raises:
            NnitError: the directory belongs to another run, and the stage is not repeatable.
        """
        difference = self._difference()
        if difference and not self.repeatable:
            raise NnitError(
                f"{self.directory} holds the {self.name} stage of another run "
                f"({difference}). Choose another output directory "
                "(`--out`), or delete this one to start again."
            )
        return not difference and (self.directory / MANIFEST).exists()

    def begin(self) -> None:
        """Claim the directory for this key, or resume in it."""
        if self._difference():
            for name in (MANIFEST, _KEY):
                (self.directory / name).unlink(missing_ok=True)
        path, spent = self.directory / _KEY, 0.0
        if path.exists():
            # An earlier try worked until it wrote its last file.
            earlier: StageClaim = read_json(path)
            spent = earlier["spent"] + _last_write(self.directory) - earlier["started"]
        claim: StageClaim = {"key": self.key, "started": time.time(), "spent": spent}
        write_json(path, claim)

    def finish(self, figures: Mapping[str, object]) -> Manifest:
        """Write the manifest, with which the stage is done, and return it."""
        claim: StageClaim = read_json(self.directory / _KEY)
        manifest: Manifest = {
            "stage": self.name,
            "key": self.key,
            "figures": dict(figures),
            "seconds": round(claim["spent"] + time.time() - claim["started"], 1),
            "versions": {package: version(package) for package in _VERSIONED},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        write_json(self.directory / MANIFEST, manifest)
        return manifest

    def _difference(self) -> str | None:
        """Where the key of the directory differs from this one; None if it does not."""
        for name in (MANIFEST, _KEY):
            path = self.directory / name
            if path.exists():
                known, wanted = _comparable(read_json(path)["key"], self.key)
                if known != wanted:
                    return _first_difference(known, wanted)
        return None


def _comparable(known: StageKey, wanted: StageKey) -> tuple[JsonObject, JsonObject]:
    """Both keys under current names, with the sections that both have.

    Other versions of a stage may have read other sections. A setting that an older version did not
    have counts as None.
    """
    known_config, wanted_config = upgrade_config(known["config"]), upgrade_config(wanted["config"])
    common = known_config.keys() & wanted_config.keys()

    def comparable(key: StageKey, config: JsonObject) -> JsonObject:
        return _without_none({**key, "config": {name: config[name] for name in common}})

    return comparable(known, known_config), comparable(wanted, wanted_config)


def _last_write(directory: Path) -> float:
    """When the newest file below a directory was written, in seconds since the epoch."""
    newest = 0.0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a process that ends deletes its files
            newest = max(newest, path.stat().st_mtime)
    return newest


def _without_none(key: Any) -> Any:
    if not isinstance(key, dict):
        return key
    return {name: _without_none(value) for name, value in key.items() if value is not None}


def _first_difference(old: JsonObject, new: JsonObject, path: str = "") -> str:
    """The first difference between two keys, such as `config.seed: 0, now 1`."""
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return _first_difference(a, b, f"{path}{name}.")
        return f"{path}{name}: {a}, now {b}"
    return "unchanged"
