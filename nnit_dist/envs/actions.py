"""Actions of a control mode: their bounds, and normalized actions in [-1, 1].

Networks act in normalized units: -1 is the lower bound of the control mode's action space and 1 is
the upper one. In most control modes of ManiSkill3 the bounds are -1 and 1, and both units are the
same. In others, as pd_joint_pos (targets of joints in rad), they are not.
"""

from functools import cached_property

import gymnasium as gym
import numpy as np
import torch

from nnit_dist.core.errors import NnitError


class ActionBounds:
    """Lower and upper bound of an action space, float32 [act_dim], in the control mode's units."""

    def __init__(self, space: gym.Space) -> None:
        # Several robots have an action each; here these are one after another.
        parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
        boxes = [part for part in parts.values() if isinstance(part, gym.spaces.Box)]
        self.sizes = {name: box.shape[0] for name, box in zip(parts, boxes, strict=True)}
        self.low = np.concatenate([box.low for box in boxes]).astype(np.float32)
        self.high = np.concatenate([box.high for box in boxes]).astype(np.float32)

    def split(self, action: np.ndarray) -> "np.ndarray | dict[str, np.ndarray]":
        """The action [act_dim] as ManiSkill takes it: by robot, where there are several."""
        if list(self.sizes) == [""]:
            return action
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        return dict(zip(self.sizes, np.split(action, ends), strict=True))

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return len(self.low)

    @cached_property
    def normalized(self) -> bool:
        """Whether the control mode's own units are the normalized ones."""
        return bool((self.low == -1).all() and (self.high == 1).all())

    def check(self, task: str, control_mode: str) -> None:
        """Raise NnitError if networks cannot act, since an action has no bounds."""
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise NnitError(
                f"some actions of {task} have no bounds in control mode {control_mode!r}, so "
                "networks cannot use it: they act between bounds. Choose another control mode."
            )

    def clip(self, action: np.ndarray) -> np.ndarray:
        """Clip an action [act_dim] in the control mode's units."""
        return np.minimum(np.maximum(action, self.low), self.high)

    def from_normalized(self, action: np.ndarray) -> np.ndarray:
        """Normalized actions [..., act_dim] in the control mode's units."""
        if self.normalized:
            return action
        scaled = self.low + (action + np.float32(1)) * (0.5 * (self.high - self.low))
        return self.clip(scaled.astype(np.float32))

    def tensor_from_normalized(self, actions: torch.Tensor) -> torch.Tensor:
        """As `from_normalized`, for tensors [N, act_dim] on any device."""
        if self.normalized:
            return actions
        low, high = (torch.from_numpy(x).to(actions.device) for x in (self.low, self.high))
        return (low + (actions + 1) * (0.5 * (high - low))).clamp(low, high)
