"""What the hypernetwork learns from: states that were visited, and the teachers to act in them.

Shapes: B networks, S states, T teachers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from nnit_dist.align.ghn import Layers, apply_layers
from nnit_dist.artifacts import write_atomic
from nnit_dist.normalization import InputNorm
from nnit_dist.policy import Policy
from nnit_dist.storage import local_file


@dataclass
class Lessons:
    """Whitened observations [N, obs_dim] by teacher, and the teachers for whitened observations.

    A teacher's states are those that it visited itself, and networks that are mostly after it.
    """

    norm: InputNorm
    obs: list[Tensor]
    teachers: list[Layers]

    @property
    def obs_dim(self) -> int:
        return self.teachers[0][0][0].shape[2]

    @property
    def act_dim(self) -> int:
        return self.teachers[0][-1][0].shape[1]

    @classmethod
    def of(cls, norm: InputNorm, obs: list[np.ndarray], teachers: list[Policy]) -> "Lessons":
        layers = [
            [(torch.from_numpy(w)[None], torch.from_numpy(b)[None]) for w, b in unfolded]
            for unfolded in (norm.unfold(teacher.layers) for teacher in teachers)
        ]
        return cls(norm, [torch.from_numpy(states) for states in obs], layers)

    def draw(self, mixes: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """States [B, S, obs_dim] and the actions there [B, S, act_dim] for mixes [B, T].

        Each state is one of a teacher's, by its share in the mix.
        """
        lengths = torch.tensor([len(states) for states in self.obs])
        owners, places = draw_states(mixes, lengths, count, rng)
        obs = torch.empty(*owners.shape, self.obs_dim)
        for owner in owners.unique().tolist():
            rows, cols = (owners == owner).nonzero(as_tuple=True)
            obs[rows, cols] = self.obs[owner][places[rows, cols]]
        return obs, self.actions(mixes, obs)

    @torch.no_grad()
    def actions(self, mixes: Tensor, obs: Tensor) -> Tensor:
        """The teachers' actions, in [-1, 1], averaged by the mixes [B, T]: [B, S, act_dim]."""
        actions = torch.zeros(*obs.shape[:2], self.act_dim)
        for teacher in mixes.any(0).nonzero().flatten().tolist():
            rows = mixes[:, teacher].nonzero().flatten()
            states = obs[rows].flatten(0, 1)[None]
            own = apply_layers(self.teachers[teacher], states)[0].clamp(-1, 1)
            shares = mixes[rows, teacher, None, None]
            actions[rows] += shares * own.unflatten(0, (len(rows), -1))
        return actions

    def save(self, path: Path) -> None:
        """Write one safetensors file; the states are kept in float16."""
        arrays = {"norm.mean": self.norm.mean, "norm.std": self.norm.std}
        for index, (states, layers) in enumerate(zip(self.obs, self.teachers, strict=True)):
            arrays[f"obs.{index}"] = states.half().numpy()
            for layer, (weight, bias) in enumerate(layers):
                arrays[f"teacher.{index}.{layer}.weight"] = weight[0].numpy()
                arrays[f"teacher.{index}.{layer}.bias"] = bias[0].numpy()
        write_atomic(path, lambda partial: save_file(arrays, partial))

    @classmethod
    def load(cls, path: Path) -> "Lessons":
        """Read what `save` wrote."""
        with local_file(path) as file:
            arrays = load_file(file)
        count = sum(name.startswith("obs.") for name in arrays)
        obs = [torch.from_numpy(arrays[f"obs.{i}"].astype(np.float32)) for i in range(count)]
        teachers = [_layers(arrays, f"teacher.{i}") for i in range(count)]
        return cls(InputNorm(arrays["norm.mean"], arrays["norm.std"]), obs, teachers)


def draw_states(
    mixes: Tensor, lengths: Tensor, count: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Whose states, and which of them, for mixes [B, T] of teachers with `lengths` [T] states.

    Both int64 [B, count]; a teacher's share of the states is its share in the mix.
    """
    owners = torch.multinomial(mixes, count, replacement=True, generator=rng)
    return owners, (torch.rand(owners.shape, generator=rng) * lengths[owners]).long()


def _layers(arrays: dict[str, np.ndarray], prefix: str) -> Layers:
    layers: Layers = []
    while (name := f"{prefix}.{len(layers)}.weight") in arrays:
        weight, bias = arrays[name], arrays[f"{prefix}.{len(layers)}.bias"]
        layers.append((torch.from_numpy(weight)[None], torch.from_numpy(bias)[None]))
    return layers
