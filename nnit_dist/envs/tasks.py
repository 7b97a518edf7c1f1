"""Checks whether a task of ManiSkill3 can be used on this machine."""

import os
import warnings

from nnit_dist.core.errors import NnitError, nearest


def prepare_process() -> None:
    """Keep ManiSkill from asking for input and from a known warning.

    It changes the process, so call it before ManiSkill is used, not on import.
    """
    # Without it, building an environment may wait for input that never comes.
    os.environ.setdefault("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "1")
    # SAPIEN has its own libvulkan, and `nnit doctor` reports whether rendering works.
    warnings.filterwarnings("ignore", message="Failed to find system libvulkan")


def check_task(task: str) -> int:
    """Episode length of `task` in env steps.

    Raises:
        NnitError: ManiSkill has no such task, or it lacks assets, a dense reward for training, or
            an episode length.
    """
    prepare_process()
    import mani_skill.envs  # noqa: F401  (registers the tasks)
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    spec = REGISTERED_ENVS.get(task)
    if spec is None:
        raise NnitError(
            f"ManiSkill3 has no task {task!r}.{nearest(task, list(REGISTERED_ENVS))} "
            "Tasks that need no download include PushCube-v1, PullCube-v1 and PickCube-v1."
        )
    missing = _missing_assets(spec.asset_download_ids or [], assets)
    if missing:
        raise NnitError(
            f"{task} needs assets that are not on this machine ({', '.join(missing)}). "
            f"Run `python -m mani_skill.utils.download_asset {task}` first."
        )
    if "dense" not in spec.cls.SUPPORTED_REWARD_MODES:
        raise NnitError(
            f"{task} has no dense reward (only {', '.join(spec.cls.SUPPORTED_REWARD_MODES)}), so "
            "PPO cannot train a population on it. Choose a task with a dense reward."
        )
    if spec.max_episode_steps is None:
        raise NnitError(f"{task} has no episode length, so its success cannot be measured.")
    return spec.max_episode_steps


def _missing_assets(ids: list[str], assets) -> list[str]:
    sources = []
    for asset_id in ids:
        if asset_id in assets.DATA_GROUPS:
            sources += assets.expand_data_group_into_individual_data_source_ids(asset_id)
        else:
            sources.append(asset_id)
    return [source for source in sources if not assets.is_data_source_downloaded(source)]
