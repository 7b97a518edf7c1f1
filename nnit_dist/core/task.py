"""Tasks of ManiSkill3, as far as a policy has to fit them."""

from dataclasses import dataclass
from typing import Literal

from nnit_dist.core.errors import NnitError
from nnit_dist.core.names import check_name

DEFAULT_CONTROL_MODE = "pd_joint_delta_pos"
MOST_SEED = 2**31 - 1  # of whatever is random
MOST_EPISODES = 1_000_000  # of a policy: the standard error of its success is 0.0005 then
MOST = 1 << 16  # observations, actions, or env steps of an episode


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
        for name in ("obs_dim", "act_dim", "max_episode_steps"):
            size = getattr(self, name)
            if not (isinstance(size, int) and 0 < size <= MOST):
                raise NnitError(f"{name} of {self.name} is {size!r}; expected 1 to {MOST}.")


SimBackend = Literal["auto", "physx_cpu", "physx_cuda"]
