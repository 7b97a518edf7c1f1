"""What a policy must fit: a task of ManiSkill3, and the sizes of its observations and actions."""

from dataclasses import dataclass
from typing import Literal

DEFAULT_CONTROL_MODE = "pd_joint_delta_pos"


@dataclass(frozen=True)
class TaskInfo:
    """What a policy for a task must fit: sizes of observation and action, and episode length."""

    name: str
    control_mode: str
    obs_dim: int
    act_dim: int
    max_episode_steps: int


SimBackend = Literal["auto", "physx_cpu", "physx_cuda"]
