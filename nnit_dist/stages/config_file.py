"""Reading of a configuration file: overrides, and checks of values that must fit each other."""

import itertools
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nnit_dist.core.errors import NnitError, nearest
from nnit_dist.core.names import check_name
from nnit_dist.core.splits import DEEPER
from nnit_dist.core.topology import hidden_name
from nnit_dist.stages.config import RunConfig, explain
from nnit_dist.stages.yaml_file import parse_yaml, read_yaml
from nnit_dist.training.config import check_task_weights

MOST_TOPOLOGIES = 5_000_000  # of the grid


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML configuration and `key.path=value` overrides.

    Raises:
        NnitError: the file is missing or not YAML, a key is unknown (with its full path and the
            nearest valid name), or a value is out of range.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise NnitError(f"{path} holds no configuration: expected keys such as name and tasks.")
    for override in overrides or []:
        _override(data, override)
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise NnitError(f"{path}: " + "; ".join(explain(e) for e in error.errors())) from None
    _check_tasks(config, path)
    _check_widths(config, path)
    _check_workers(config, path)
    _check_generated(config, path)
    _check_split(config, path)
    return config


def _override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals:
        raise NnitError(f"cannot read the override {text!r}; write it as key.path=value.")
    *parents, last = path.split(".")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise NnitError(f"the override {text!r} goes into {name!r}, which is a value.")
    data[last] = parse_yaml(value, f"the value of the override {text!r}")


def _check_tasks(config: RunConfig, path: Path) -> None:
    try:
        check_name(config.name, "the name of a run")
    except NnitError as error:
        raise NnitError(f"{path}: {error}") from None
    if len(set(config.tasks)) < len(config.tasks):
        raise NnitError(f"{path}: a task is named twice in tasks={config.tasks}.")
    for key in ("recipes", "architectures_by_task"):
        for task in getattr(config.population, key):
            if task not in config.tasks:
                hint = nearest(task, config.tasks)
                raise NnitError(
                    f"{path}: population.{key} has {task}, which is not in tasks.{hint}"
                )
    for key, task_weights in (
        ("align.distill", config.align.distill.task_weights),
        ("nnit", config.nnit.task_weights),
    ):
        try:
            check_task_weights(config.tasks, task_weights)
        except NnitError as error:
            raise NnitError(f"{path}: {key}.task_weights: {error}") from None
    for task in config.tasks:
        try:
            config.population.recipe_of(task)
        except ValidationError as error:
            # Each value is in range by itself, but together they do not fit.
            reasons = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
            raise NnitError(f"{path}: the recipe of {task}: {reasons}.") from None


def _check_split(config: RunConfig, path: Path) -> None:
    """Raise NnitError if the topologies cannot be split as the configuration asks for."""
    grid = config.topologies
    for name, values in (("widths", grid.widths), ("depths", grid.depths)):
        if len(set(values)) < len(values):
            raise NnitError(f"{path}: topologies.{name}={values} has a value twice.")
    widths = len({*grid.widths, *grid.unseen_widths}) + 1
    if widths ** (max(grid.depths) + DEEPER) > MOST_TOPOLOGIES:
        raise NnitError(
            f"{path}: {widths} widths and depths {grid.depths} make more than {MOST_TOPOLOGIES:,} "
            "topologies; use fewer of them."
        )
    try:
        config.split()
    except NnitError as error:
        raise NnitError(f"{path}: {error}") from None


def _check_generated(config: RunConfig, path: Path) -> None:
    kept = config.topologies.unseen
    for kind, count in (config.generate.unseen_topologies or {}).items():
        if count > kept.get(kind, 0):
            raise NnitError(
                f"{path}: generate.unseen_topologies asks for {count} of kind {kind}, and "
                f"topologies.unseen keeps {kept.get(kind, 0)}."
            )


def _check_workers(config: RunConfig, path: Path) -> None:
    if config.generate.guidance and not config.nnit.condition_dropout:
        raise NnitError(
            f"{path}: generate.guidance={config.generate.guidance} needs some "
            "nnit.condition_dropout, such as 0.1."
        )
    workers, shared = config.training.workers, config.align.distill.topologies_per_step
    if workers > shared:
        raise NnitError(
            f"{path}: training.workers={workers} are more than the topologies of a step, "
            f"align.distill.topologies_per_step={shared}: some would have nothing to do."
        )


def _check_widths(config: RunConfig, path: Path) -> None:
    widths, patch = sorted(config.topologies.widths), config.nnit.patch
    unseen, variation = config.topologies.unseen_widths, config.topologies.variation
    if small := [w for w in [*widths, *unseen] if w < patch]:
        raise NnitError(f"{path}: width {small[0]} is less than nnit.patch={patch}.")
    if beyond := [w for w in unseen if w > 2 * widths[-1]]:
        raise NnitError(
            f"{path}: topologies.unseen_widths has {beyond[0]}, more than twice the largest "
            f"training width {widths[-1]}: a model writes up to twice. Name others, or [] for none."
        )
    population = config.population
    for hidden in {h for task in config.tasks for h, _ in population.architectures_of(task)}:
        if kept := set(hidden) & set(unseen):
            raise NnitError(
                f"{path}: the population has {hidden_name(hidden)}, but {min(kept)} is in "
                "topologies.unseen_widths."
            )
    if both := [w for w in unseen if w in widths]:
        raise NnitError(f"{path}: width {both[0]} is both a training and an unseen width.")
    # Varied training widths must reach neither unseen widths nor unseen combinations.
    distances = [abs(w - u) - 1 for w in widths for u in unseen if u < widths[-1]]
    distances += [(wider - w - 1) // 2 for w, wider in itertools.pairwise(widths)]
    most = min([*distances, widths[0] - patch])
    if variation > most:
        raise NnitError(
            f"{path}: topologies.variation={variation} is too much: training networks would reach "
            f"unseen widths, each other's or less than nnit.patch={patch}. At most {most} with "
            f"widths {widths} and unseen_widths {unseen}."
        )
