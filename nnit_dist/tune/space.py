"""A search space: a small Python module that says what is varied, and of which stage.

    STAGE = "train"
    SPACE = {"nnit.lr": tune.loguniform(3e-4, 3e-3), ...}

Keys are those of a configuration, values domains of Ray Tune.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ray.tune.search.sample import Domain

from nnit_dist.config import RunConfig, with_values
from nnit_dist.errors import NnitError

Stage = Literal["align", "train"]


@dataclass(frozen=True)
class Space:
    """What is searched: `domains` by configuration key, of what `stage` trains."""

    name: str
    stage: Stage
    domains: dict[str, Domain]

    def defaults(self, config: RunConfig) -> dict[str, Any]:
        """The configuration's own values of what is searched."""
        return {key: _value(config, key) for key in self.domains}


def load_space(path: Path, config: RunConfig) -> Space:
    """Run a module of the user's, and check what it says against a configuration.

    Raises:
        NnitError: it is missing, says nothing of STAGE or SPACE, or has a key or a value that the
            configuration does not take.
    """
    if not path.exists():
        raise NnitError(f"there is no search space {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NnitError(f"{path} is no Python module.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stage, domains = getattr(module, "STAGE", None), getattr(module, "SPACE", None)
    if stage not in get_args(Stage):
        raise NnitError(
            f"{path} has STAGE={stage!r}; it names what a trial trains: "
            f"{' or '.join(get_args(Stage))}."
        )
    if not isinstance(domains, dict) or not domains:
        raise NnitError(f"{path} has no SPACE, a dictionary of configuration keys and domains.")
    for key, domain in domains.items():
        if not isinstance(domain, Domain):
            raise NnitError(f"{path}: SPACE has {domain!r} for {key}, which is no domain of Tune.")
        if not domain.is_valid(_value(config, key)):
            raise NnitError(
                f"{path}: SPACE leaves out {key}={_value(config, key)!r}, the configuration's own."
            )
        for _ in range(8):
            with_values(config, {key: domain.sample()}, f"{path}: SPACE")
    return Space(path.stem, cast(Stage, stage), domains)


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NnitError(f"there is no key {key!r} in a configuration.")
        value = value[name]
    return value
