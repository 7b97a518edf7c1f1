"""A search space: a small Python module that names a stage and the values to vary.

    STAGE = "train"
    SPACE = {"nnit.lr": tune.loguniform(3e-4, 3e-3), ...}

Keys are configuration keys; values are search domains of Ray Tune.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from optuna.distributions import BaseDistribution
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from nnit_dist.core.errors import NnitError
from nnit_dist.search.config import Stage
from nnit_dist.search.records import Values
from nnit_dist.stages.config import RunConfig, value_of, with_values

TRIED = 8  # random values of a domain that the configuration must accept
# Configuration keys that trials of a stage read, and those of them that the search itself sets.
READ: dict[str, tuple[str, ...]] = {
    "population": ("population.recipe.", "population.recipes.", "population.architectures"),
    "align": ("align.ghn.", "align.distill.", "topologies.variation"),
    "train": ("nnit.", "generate.guidance", "generate.sampler_steps"),
}
SET = ("nnit.steps", "align.distill.steps", "align.distill.teacher_episodes")
RECIPE = "population.recipe."


@dataclass(frozen=True)
class Space:
    """Search space of what `stage` trains.

    `domains` are Optuna distributions by configuration key; `given` are the same as Ray Tune's.
    """

    name: str
    stage: Stage
    domains: dict[str, BaseDistribution]
    given: dict[str, Domain]

    def defaults(self, config: RunConfig) -> Values:
        """The configuration's own values of the searched keys, as a search writes them."""
        return {
            key: domain.to_external_repr(domain.to_internal_repr(_default(config, key)))
            for key, domain in self.domains.items()
        }


def load_space(path: Path, config: RunConfig) -> Space:
    """Load a user's module, and check its search space against a configuration.

    Raises:
        NnitError: the module is missing or lacks STAGE or SPACE; a key is not read by trials; the
            configuration refuses a key or value; or a domain leaves out the configuration's own
            value.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise NnitError(f"there is no search space {path}, a Python module.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise NnitError(f"{path} cannot be run: {type(error).__name__}: {error}.") from None
    stage: Any = getattr(module, "STAGE", None)
    space = getattr(module, "SPACE", None)
    if stage not in get_args(Stage):
        raise NnitError(
            f"{path} has STAGE={stage!r}; it names what a trial trains: "
            f"{', '.join(get_args(Stage))}."
        )
    if not isinstance(space, dict) or not space:
        raise NnitError(f"{path} has no SPACE, a dictionary of configuration keys and domains.")
    domains = {key: _domain(path, key, domain) for key, domain in space.items()}
    for key, domain in domains.items():
        default = _default(config, key)
        _check_read(path, stage, key, config)
        if not _holds(domain, default):
            raise NnitError(f"{path}: SPACE leaves out {key}={default!r}, the configuration's own.")
        for _ in range(TRIED):
            with_values(config, {key: space[key].sample()}, f"{path}: SPACE")
    return Space(path.stem, cast(Stage, stage), domains, space)


def _default(config: RunConfig, key: str) -> Any:
    """The configuration's own value of a key; for `population.recipe`, as the task uses it."""
    value = value_of(config, key)
    if key.startswith(RECIPE):
        return getattr(config.population.recipe_of(config.tasks[0]), key.removeprefix(RECIPE))
    return value


def _check_read(path: Path, stage: str, key: str, config: RunConfig) -> None:
    """Raise NnitError if trials do not read a key: a search would only fit noise."""
    task = config.tasks[0]
    if not key.startswith(READ[stage]) or key in SET:
        kept = [name for name in SET if name.startswith(READ[stage])]
        but = f", but not {', '.join(kept)}"
        raise NnitError(
            f"{path}: trials of STAGE={stage!r} do not read {key}; they read "
            f"{', '.join(name + '*' * name.endswith('.') for name in READ[stage])}"
            f"{but if kept else ''}."
        )
    if key.startswith("population.recipes.") and key.split(".")[2] != task:
        raise NnitError(f"{path}: the search is on {task}, whose trials do not read {key}.")
    recipe = config.population.recipes.get(task)
    if (
        key.startswith(RECIPE)
        and recipe
        and (name := key.removeprefix(RECIPE)) in recipe.model_fields_set
    ):
        raise NnitError(
            f"{path}: population.recipes.{task} has a {name} of its own; search that, not {key}."
        )


def _domain(path: Path, key: str, domain: Any) -> BaseDistribution:
    try:
        return OptunaSearch.convert_search_space({key: domain})[key]
    except Exception:
        raise NnitError(
            f"{path}: SPACE has {domain!r} for {key}; it takes tune.uniform, loguniform, quniform, "
            "randint and choice."
        ) from None


def _holds(domain: BaseDistribution, value: Any) -> bool:
    try:
        return domain._contains(domain.to_internal_repr(value))
    except (TypeError, ValueError):
        return False
