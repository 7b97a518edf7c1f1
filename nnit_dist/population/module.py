"""The RLlib module of the population: a plain actor of any topology beside a fixed critic.

The actor is one `nn.Sequential`, so a policy is a slice of its state dict, and
actor and critic share nothing (RLlib's default module shares its encoder).
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

CRITIC_HIDDEN = (256, 256)
INITIAL_LOG_STD = -0.5


class ActorCriticModule(TorchRLModule, ValueFunctionAPI):
    """`model_config["hidden"]` gives the actor's widths; the critic is always 256x256."""

    def setup(self) -> None:
        observation: Any = self.observation_space
        action: Any = self.action_space
        config: Any = self.model_config
        obs_dim, act_dim = observation.shape[0], action.shape[0]
        self.actor = tanh_mlp((obs_dim, *config["hidden"], act_dim), 0.01 * math.sqrt(2))
        self.critic = tanh_mlp((obs_dim, *CRITIC_HIDDEN, 1), 1.0)
        self.log_std = nn.Parameter(torch.full((act_dim,), INITIAL_LOG_STD))

    def _forward(self, batch, **kwargs):
        mean = self.actor(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.log_std.expand_as(mean)], -1)}

    def compute_values(self, batch, embeddings=None):
        return self.critic(batch[Columns.OBS]).squeeze(-1)

    def actor_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The actor's (weight [out, in], bias [out]) per layer, copied."""
        return [
            (layer.weight.detach().cpu().numpy().copy(), layer.bias.detach().cpu().numpy().copy())
            for layer in self.actor
            if isinstance(layer, nn.Linear)
        ]


def tanh_mlp(dims: tuple[int, ...], output_gain: float) -> nn.Sequential:
    """Orthogonally initialised MLP with tanh between its layers (ManiSkill's PPO baseline)."""
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(dims)):
        last = i == len(dims) - 2
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, output_gain if last else math.sqrt(2))
        nn.init.zeros_(linear.bias)
        modules += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*modules)
