"""Tasks of ManiSkill3, as far as a policy has to fit them."""

from dataclasses import dataclass
from typing import Literal

from nnit_dist.core.names import check_name

DEFAULT_CONTROL_MODE = "pd_joint_delta_pos"


@dataclass(frozen=True)
class TaskInfo:
    """A task: sizes of its observations and actions, episode length in env steps, and robot."""

    name: str
    control_mode: str
    obs_dim: int
    act_dim: int
    max_episode_steps: int
    robot: str = ""  # empty in files that do not say

    def __post_init__(self) -> None:
        check_name(self.name, "task")
        check_name(self.control_mode, "control mode")


SimBackend = Literal["auto", "physx_cpu", "physx_cuda"]
