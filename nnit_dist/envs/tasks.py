"""Which tasks of ManiSkill3 can be used on this machine, and for what.

Policies can be measured on every task that can be built here and says what success is. A population
needs a dense reward as well. `nnit tasks` tries them all.
"""

import inspect
import os
import warnings
from typing import Any

from nnit_dist.core.errors import NnitError, nearest

DOWNLOAD = "python -m mani_skill.utils.download_asset"


def prepare_process() -> None:
    """Keep ManiSkill from asking for input, from downloads, and from a known warning.

    It changes the process, so call it before ManiSkill is used, not on import.
    """
    # Without it, building an environment may wait for input that never comes.
    os.environ.setdefault("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "1")
    # SAPIEN has its own libvulkan, and `nnit doctor` reports whether rendering works.
    warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
    from mani_skill.utils import download_asset

    download_asset.download = _refuse_download


def _refuse_download(source: Any, *args: Any, **kwargs: Any) -> None:
    """Takes the place of ManiSkill's download, which nobody has asked for."""
    from mani_skill.utils import assets

    names = [name for name, known in assets.DATA_SOURCES.items() if known is source]
    raise NnitError(_missing_message(names or ["NAME"]))


def _missing_message(names: list[str]) -> str:
    return (
        f"it needs assets that are not on this machine ({', '.join(names)}). "
        f"Run `{DOWNLOAD} {names[0]}` first."
    )


def check_task(task: str, training: bool = False) -> int:
    """Episode length of `task` in env steps.

    Args:
        training: whether a population is to be trained on it, which needs a dense reward.

    Raises:
        NnitError: ManiSkill has no such task, or it lacks assets, an episode length, or a dense
            reward for training.
    """
    spec = _spec(task)
    from mani_skill.agents.registration import REGISTERED_AGENTS

    needed = list(spec.asset_download_ids or [])
    for robot in _robots(spec.cls):
        needed += REGISTERED_AGENTS[robot].asset_download_ids if robot in REGISTERED_AGENTS else []
    if missing := _missing_assets(needed):
        raise NnitError(f"{task} cannot be used: {_missing_message(missing)}")
    if spec.max_episode_steps is None:
        raise NnitError(f"{task} has no episode length, so its success cannot be measured.")
    if training and "dense" not in spec.cls.SUPPORTED_REWARD_MODES:
        raise NnitError(
            f"{task} has no dense reward (only {', '.join(spec.cls.SUPPORTED_REWARD_MODES)}), so "
            "PPO cannot train a population on it. Choose a task with a dense reward."
        )
    return spec.max_episode_steps


def reward_mode(task: str, reward: bool) -> str:
    """ManiSkill's reward mode of a task, with or without `reward`.

    Raises:
        NnitError: there is no reward.
    """
    modes = _spec(task).cls.SUPPORTED_REWARD_MODES
    if not reward:
        return "none"
    for mode in ("normalized_dense", "sparse"):
        if mode in modes:
            return mode
    raise NnitError(f"{task} has no reward, so returns cannot be measured.")


def _spec(task: str) -> Any:
    prepare_process()
    import mani_skill.envs  # noqa: F401  (registers the tasks)
    from mani_skill.utils.registration import REGISTERED_ENVS

    spec = REGISTERED_ENVS.get(task)
    if spec is None:
        raise NnitError(
            f"ManiSkill3 has no task {task!r}.{nearest(task, list(REGISTERED_ENVS))} "
            "`nnit tasks` lists all; PushCube-v1, PullCube-v1 and PickCube-v1 need no download."
        )
    return spec


def all_tasks() -> list[str]:
    """Names of all tasks that are registered, in alphabetic order."""
    _spec("PushCube-v1")
    from mani_skill.utils.registration import REGISTERED_ENVS

    return sorted(REGISTERED_ENVS)


def _robots(cls: type) -> list[str]:
    """The robots of a task, as far as its class names them."""
    default = inspect.signature(cls).parameters.get("robot_uids")
    robots = default.default if default is not None else None
    return [robots] if isinstance(robots, str) else list(robots or [])


def _missing_assets(ids: list[str]) -> list[str]:
    from mani_skill.utils import assets

    sources = []
    for asset_id in ids:
        if asset_id in assets.DATA_GROUPS:
            sources += assets.expand_data_group_into_individual_data_source_ids(asset_id)
        else:
            sources.append(asset_id)
    return [source for source in sources if not assets.is_data_source_downloaded(source)]
