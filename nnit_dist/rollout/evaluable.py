"""What can be evaluated: policies, policy files, a zoo, or any Python callable."""

import copy
import functools
import importlib
import inspect
import itertools
import os
import sys
import types
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
    """A callable that maps an observation [obs_dim] to an action [act_dim].

    Actions are in the units of the control mode and are clipped to its bounds, or, if `normalized`,
    in [-1, 1]. A callable has no weights that identify it, so its episodes are measured anew each
    time.

    No state goes from one episode to the next. The callable's `reset(seed)`, if it has one, is
    called before each episode, with the seed of its start state if it takes an argument. Without
    `reset`, each episode gets an instance of its own: a new one of a class, a copy of an object.
    (What a plain function keeps elsewhere, in its closure or its module, cannot be reset.)
    """

    function: Callable[..., Any]
    task: str
    control_mode: str
    id: str
    source: str = "function"
    hidden: tuple[int, ...] = ()
    version: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    normalized: bool = False

    def begin(self, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        """The function of the episode of a seed; its actions are float32 [act_dim]."""
        function = self.function
        if isinstance(function, type):
            function = function()
        elif _reset_of(function) is None:
            function = _fresh(function)
        if reset := _reset_of(function):
            reset(*[seed] if _takes_argument(reset) else [])
        return lambda obs: _action(function(obs))

    def fingerprint(self) -> str:
        """Identifier of this instance, under which its episodes are stored."""
        return self.version


def _action(value: Any) -> np.ndarray:
    """What a function returns, float32; ValueError if it is no array of real numbers."""
    action = np.asarray(value)
    if action.dtype.kind not in "fiub":
        raise ValueError(f"an action must be real numbers, not {value!r:.80}")
    return action.astype(np.float32)


def _reset_of(function: Callable) -> Callable | None:
    """The callable's `reset`, or that of the object whose method, or partial, it is."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    reset = getattr(owner, "reset", None)
    return reset if callable(reset) and not isinstance(owner, types.ModuleType) else None


def _takes_argument(reset: Callable) -> bool:
    try:
        inspect.signature(reset).bind(0)
    except TypeError:
        return False
    return True


def _fresh(function: Callable) -> Callable:
    """A copy of an object, or of a method with its object; functions are what they are."""
    stateless = isinstance(function, types.FunctionType | types.BuiltinFunctionType)
    return function if stateless else copy.deepcopy(function)


Evaluable = Policy | FunctionPolicy


def read_evaluables(
    source: Any, task: str | None = None, control_mode: str | None = None
) -> list[Evaluable]:
    """Read policies from a policy, a callable, a path, or a sequence of these.

    A path is a policy file, a directory of them, or a zoo; a string `module:function` names a
    callable (or a class, whose instances are called). Callables need `task`.

    Raises:
        NnitError: `source` is none of these, a file is damaged, a callable has no task, or a policy
            is of another task or control mode than the given ones.
    """
    if isinstance(source, Policy | FunctionPolicy):
        return _of_task([source], task, control_mode)
    if isinstance(source, Path | UPath):
        return _of_task(_read_path(path_of(str(source))), task, control_mode)
    if isinstance(source, str):
        if Path(source).exists() or ":" not in source or "://" in source:
            return _of_task(_read_path(path_of(source)), task, control_mode)
        return [_function(_import(source), task, control_mode, source)]
    if callable(source):
        name = getattr(source, "__name__", type(source).__name__)
        return [_function(source, task, control_mode, name)]
    if isinstance(source, Sequence):
        return _numbered([s for part in source for s in read_evaluables(part, task, control_mode)])
    raise NnitError(
        f"cannot evaluate {source!r}; give policies, a path to policy files or to a zoo, or a "
        "callable that maps an observation to an action."
    )


def _numbered(evaluables: list[Evaluable]) -> list[Evaluable]:
    """Give functions of the same name, such as two lambdas, ids of their own: `<lambda>_2`."""
    taken = {policy.id for policy in evaluables if isinstance(policy, Policy)}
    numbered: list[Evaluable] = []
    for policy in evaluables:
        if isinstance(policy, FunctionPolicy):
            names = (f"{policy.id}_{i}" if i > 1 else policy.id for i in itertools.count(1))
            policy = replace(policy, id=next(name for name in names if name not in taken))
            taken.add(policy.id)
        numbered.append(policy)
    return numbered


def _of_task(
    evaluables: list[Evaluable], task: str | None, control_mode: str | None
) -> list[Evaluable]:
    for policy in evaluables:
        for name, given, of_policy in (
            ("task", task, policy.task),
            ("control mode", control_mode, policy.control_mode),
        ):
            if given is not None and given != of_policy:
                raise NnitError(
                    f"policy {policy.id!r} is for the {name} {of_policy}, not for {given}. "
                    f"Leave the {name} out, or give policies that were made for it."
                )
    return evaluables


def _read_path(path: Path) -> list[Evaluable]:
    zoo = Zoo(path)
    if path.is_dir() and zoo.files() and not any(path.rglob(f"[!.]*{SUFFIX}")):
        return sorted((member.policy for member in zoo.members()), key=lambda p: p.id)
    return list(load_policies(path))


def _function(
    function: Callable, task: str | None, control_mode: str | None, name: str
) -> FunctionPolicy:
    if task is None:
        raise NnitError(f"{name} is a function, which names no task; say which (`--task`).")
    return FunctionPolicy(function, task, control_mode or DEFAULT_CONTROL_MODE, name)


def _import(name: str) -> Callable:
    """Import the callable `module:function`; the working directory is searched too."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise NnitError(
            f"cannot import {name}: {type(error).__name__}: {error}. Name it as module:function, "
            "importable from here."
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
    policy.check_names().check_finite()
    sizes = (policy.topology.obs_dim, policy.topology.act_dim)
    if sizes != (info.obs_dim, info.act_dim):
        raise NnitError(
            f"policy {policy.id!r} maps {sizes[0]} observations to {sizes[1]} actions, but "
            f"{info.name} has {info.obs_dim} and {info.act_dim} ({info.control_mode})."
        )


def _check_function(policy: FunctionPolicy, info: TaskInfo) -> None:
    try:
        action = policy.begin(0)(np.zeros(info.obs_dim, np.float32))
    except (Exception, SystemExit) as error:
        raise NnitError(
            f"{policy.id} fails on an observation [{info.obs_dim}] of zeros: "
            f"{type(error).__name__}: {error}"
        ) from error
    if action.shape != (info.act_dim,) or not np.isfinite(action.astype(np.float64)).all():
        raise NnitError(
            f"{policy.id} must return an action of {info.act_dim} finite numbers for "
            f"{info.name}; got {action!r}."
        )
