"""Distillation data: visited states, and the teachers whose actions the hypernetwork learns.

Shapes: B networks, S states, T teachers.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from nnit_dist.core.files import write_atomic
from nnit_dist.core.mlp import Layer, MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.storage import local_file


@dataclass
class DistillationData:
    """Normalized observations [N, obs_dim] of each teacher, and the teachers as networks for them.

    A teacher's states were visited by the teacher itself, or by generated networks that imitate
    this teacher most.
    """

    norm: ObservationNormalizer
    obs: list[Tensor]
    teachers: MLPBatch

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return self.teachers.obs_dim

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return self.teachers.act_dim

    @classmethod
    def of(
        cls, norm: ObservationNormalizer, obs: list[np.ndarray], teachers: list[Policy]
    ) -> "DistillationData":
        """Distillation data from normalized states [N, obs_dim] of each teacher."""
        networks = MLPBatch.from_policies(teachers, norm)
        return cls(norm, [torch.from_numpy(states) for states in obs], networks)

    def of_teachers(self, teachers: list[int]) -> "DistillationData":
        """The data of some teachers, given by index."""
        return DistillationData(
            self.norm, [self.obs[i] for i in teachers], self.teachers.select(teachers)
        )

    def thinned(self, most: int) -> "DistillationData":
        """About `most` states at most; each teacher keeps the same share of its states."""
        share = min(1.0, most / sum(len(states) for states in self.obs))
        kept = [torch.linspace(0, len(o) - 1, round(share * len(o))).long() for o in self.obs]
        return DistillationData(
            self.norm, [o[i] for o, i in zip(self.obs, kept, strict=True)], self.teachers
        )

    def parted(self, every: int) -> tuple["DistillationData", "DistillationData"]:
        """Split the states: all but every `every`-th of each teacher, and every `every`-th."""
        left = [torch.arange(len(states)) % every > 0 for states in self.obs]
        return (
            DistillationData(
                self.norm, [o[i] for o, i in zip(self.obs, left, strict=True)], self.teachers
            ),
            DistillationData(
                self.norm, [o[~i] for o, i in zip(self.obs, left, strict=True)], self.teachers
            ),
        )

    def draw(
        self, teacher_weights: Tensor, count: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw states [B, S, obs_dim] and target actions [B, S, act_dim] for mixes [B, T].

        S is `count`. A teacher's share of the states is its weight in the mix. The target is the
        weighted mean of the teachers' clipped actions, in [-1, 1].
        """
        lengths = torch.tensor([len(states) for states in self.obs])
        owners, places = draw_states(teacher_weights, lengths, count, rng)
        picked = (lengths.cumsum(0) - lengths)[owners] + places
        shares, teachers = teacher_weights.topk(
            int((teacher_weights > 0).sum(1).max())
        )  # leaves out most teachers of weight 0
        rows = picked[..., None] * len(self.teachers) + teachers[:, None]
        actions = self._actions.flatten(0, 1)[rows] * shares[:, None, :, None]
        return self._states[picked], actions.sum(2)

    @cached_property
    def _states(self) -> Tensor:
        """All states, float32 [N, obs_dim]."""
        return torch.cat(self.obs)

    @cached_property
    @torch.no_grad()
    def _actions(self) -> Tensor:
        """Actions of every teacher in every state, float32 [N, T, act_dim]."""
        return actions_of(self.teachers, self._states).transpose(0, 1).contiguous()

    def save(self, path: Path) -> None:
        """Write one safetensors file; the states are kept in float16."""
        arrays = {"norm.mean": self.norm.mean, "norm.std": self.norm.std}
        for index, states in enumerate(self.obs):
            arrays[f"obs.{index}"] = states.half().numpy()
            for layer, (weight, bias) in enumerate(self.teachers.layers(index)):
                arrays[f"teacher.{index}.{layer}.weight"] = weight.contiguous().numpy()
                arrays[f"teacher.{index}.{layer}.bias"] = bias.contiguous().numpy()
        write_atomic(path, lambda partial: save_file(arrays, partial))

    @classmethod
    def load(cls, path: Path) -> "DistillationData":
        """Read what `save` wrote."""
        with local_file(path) as file:
            arrays = load_file(file)
        count = sum(name.startswith("obs.") for name in arrays)
        obs = [torch.from_numpy(arrays[f"obs.{i}"].astype(np.float32)) for i in range(count)]
        teachers = MLPBatch.from_layers([_layers(arrays, f"teacher.{i}") for i in range(count)])
        return cls(ObservationNormalizer(arrays["norm.mean"], arrays["norm.std"]), obs, teachers)


@torch.no_grad()
def actions_of(networks: MLPBatch, states: Tensor) -> Tensor:
    """Actions [K, S, act_dim] in [-1, 1] of K networks in normalized states [S, obs_dim].

    One network after another, which takes less memory than all at once.
    """
    each = (networks.select([i]).cropped() for i in range(len(networks)))
    return torch.cat([network.forward(states[None]) for network in each]).clamp_(-1, 1)


def draw_states(
    teacher_weights: Tensor, lengths: Tensor, count: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the teacher of each state, and the state's index among that teacher's states.

    Both are int64 [B, count], for mixes [B, T] of teachers with `lengths` [T] states. A teacher is
    drawn with its weight in the mix.
    """
    owners = torch.multinomial(teacher_weights, count, replacement=True, generator=rng)
    return owners, (torch.rand(owners.shape, generator=rng) * lengths[owners]).long()


def _layers(arrays: dict[str, np.ndarray], prefix: str) -> list[Layer]:
    layers: list[Layer] = []
    while (name := f"{prefix}.{len(layers)}.weight") in arrays:
        weight, bias = arrays[name], arrays[f"{prefix}.{len(layers)}.bias"]
        layers.append((torch.from_numpy(weight), torch.from_numpy(bias)))
    return layers
