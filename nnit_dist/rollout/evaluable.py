"""What can be evaluated: policies, policy files, a zoo, or any Python callable."""

import importlib
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from nnit_dist.core.errors import NnitError
from nnit_dist.core.policy import SUFFIX, Policy, load_policies
from nnit_dist.core.storage import path_of
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, TaskInfo
from nnit_dist.core.zoo import Zoo


@dataclass
class FunctionPolicy:
    """A callable that maps an observation [obs_dim] to an action [act_dim] in [-1, 1].

    A callable has no weights that identify it, so its episodes are measured anew each time.
    """

    function: Callable[[np.ndarray], np.ndarray]
    task: str
    control_mode: str
    id: str
    source: str = "function"
    hidden: tuple[int, ...] = ()
    version: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The function's action, clipped, float32 [act_dim]."""
        return np.clip(np.asarray(self.function(obs), np.float32), -1, 1)

    def fingerprint(self) -> str:
        """Identifier of this instance, under which its episodes are stored."""
        return self.version


Evaluable = Policy | FunctionPolicy


def read_evaluables(
    source: Any, task: str | None = None, control_mode: str = DEFAULT_CONTROL_MODE
) -> list[Evaluable]:
    """Read policies from a policy, a callable, a path, or a sequence of these.

    A path is a policy file, a directory of them, or a zoo; a string `module:function` names a
    callable. Callables need `task`.

    Raises:
        NnitError: `source` is none of these, a file is damaged, or a callable has no task.
    """
    if isinstance(source, Policy | FunctionPolicy):
        return [source]
    if isinstance(source, Path | UPath):
        return _read_path(path_of(str(source)))
    if isinstance(source, str):
        if Path(source).exists() or ":" not in source or "://" in source:
            return _read_path(path_of(source))
        return [_function(_import(source), task, control_mode, source)]
    if callable(source):
        name = getattr(source, "__name__", type(source).__name__)
        return [_function(source, task, control_mode, name)]
    if isinstance(source, Sequence):
        return [s for part in source for s in read_evaluables(part, task, control_mode)]
    raise NnitError(
        f"cannot evaluate {source!r}; give policies, a path to policy files or to a zoo, or a "
        "callable that maps an observation to an action."
    )


def _read_path(path: Path) -> list[Evaluable]:
    zoo = Zoo(path)
    if path.is_dir() and zoo.files() and not any(path.rglob(f"[!.]*{SUFFIX}")):
        return sorted((member.policy for member in zoo.members()), key=lambda p: p.id)
    return list(load_policies(path))


def _function(function: Callable, task: str | None, control_mode: str, name: str) -> FunctionPolicy:
    if task is None:
        raise NnitError(f"{name} is a function, which names no task; say which (`--task`).")
    return FunctionPolicy(function, task, control_mode, name)


def _import(name: str) -> Callable:
    """Import the callable `module:function`; the working directory is searched too."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise NnitError(
            f"cannot import {name}: {error}. Name it as module:function, importable from here."
        ) from None
    if not callable(function):
        raise NnitError(f"{name} is no function but a {type(function).__name__}.")
    return function


def check_evaluables(evaluables: Sequence[Evaluable], info: TaskInfo) -> None:
    """Raise NnitError unless every policy fits the task, is finite, and has a unique id."""
    seen: set[str] = set()
    for evaluable in evaluables:
        if evaluable.id in seen:
            raise NnitError(f"several policies carry the id {evaluable.id!r}; ids key the results.")
        seen.add(evaluable.id)
        if isinstance(evaluable, Policy):
            _check_policy(evaluable, info)
        else:
            _check_function(evaluable, info)


def _check_policy(policy: Policy, info: TaskInfo) -> None:
    policy.check_finite()
    sizes = (policy.topology.obs_dim, policy.topology.act_dim)
    if sizes != (info.obs_dim, info.act_dim):
        raise NnitError(
            f"policy {policy.id!r} maps {sizes[0]} observations to {sizes[1]} actions, but "
            f"{info.name} has {info.obs_dim} and {info.act_dim} ({info.control_mode})."
        )


def _check_function(policy: FunctionPolicy, info: TaskInfo) -> None:
    try:
        action = policy.act(np.zeros(info.obs_dim, np.float32))
    except Exception as error:
        raise NnitError(
            f"{policy.id} fails on an observation [{info.obs_dim}] of zeros: "
            f"{type(error).__name__}: {error}"
        ) from error
    if action.shape != (info.act_dim,) or not np.isfinite(action.astype(np.float64)).all():
        raise NnitError(
            f"{policy.id} must return an action of {info.act_dim} finite numbers for "
            f"{info.name}; got {action!r}."
        )
