"""The RLlib module of the population: an actor of any topology, and a critic of fixed size.

Actor and critic share only the normalizer of observations, which a policy has folded into its first
layer. RLlib's default module would share an encoder too.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from nnit_dist.core.normalizer import MIN_STD, ObservationNormalizer
from nnit_dist.core.topology import Activation

CRITIC_HIDDEN = (256, 256)
ACTIVATION_MODULES: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}
INITIAL_LOG_STD = -0.5


class ActorCriticModule(TorchRLModule, ValueFunctionAPI):
    """An actor of `model_config["hidden"]` widths and `["activation"]`, and a critic of 256x256.

    Shapes: batches [...], D observations, A actions.
    """

    normalizer: "RunningNormalizer"

    def setup(self) -> None:
        """Build the networks; RLlib calls this."""
        observation: Any = self.observation_space
        action: Any = self.action_space
        config: Any = self.model_config
        obs_dim, act_dim = observation.shape[0], action.shape[0]
        self.normalizer = RunningNormalizer(obs_dim)
        dims = (obs_dim, *config["hidden"], act_dim)
        self.actor = mlp(dims, 0.01 * math.sqrt(2), config.get("activation", "tanh"))
        self.critic = mlp((obs_dim, *CRITIC_HIDDEN, 1), 1.0, "tanh")
        self.log_std = nn.Parameter(torch.full((act_dim,), INITIAL_LOG_STD))

    def _forward(self, batch: Mapping[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        mean = self.actor(self.normalizer(batch[Columns.OBS]))
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.log_std.expand_as(mean)], -1)}

    def compute_values(self, batch: Mapping[str, Tensor], embeddings: None = None) -> Tensor:
        """Values [...] of the observations [..., D] of a batch."""
        return self.critic(self.normalizer(batch[Columns.OBS])).squeeze(-1)

    def actor_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Copies of the actor's layers for raw observations: (weight [out, in], bias [out])."""
        layers = [
            (layer.weight.detach().cpu().numpy().copy(), layer.bias.detach().cpu().numpy().copy())
            for layer in self.actor
            if isinstance(layer, nn.Linear)
        ]
        return self.normalizer.norm().fold(layers)


class RunningNormalizer(nn.Module):
    """Normalizes observations by the mean and standard deviation of all that it was shown.

    Before that it is the identity.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("var", torch.ones(obs_dim))

    def forward(self, obs: Tensor) -> Tensor:
        """Normalized observations [..., D]."""
        return (obs - self.mean) / self._std()

    @torch.no_grad()
    def show(self, obs: Tensor) -> None:
        """Update mean and variance with observations [..., D] (Chan et al., 1983)."""
        obs = obs.flatten(0, -2)
        total = self.count + len(obs)
        share, shift = len(obs) / total, obs.mean(0) - self.mean
        self.mean += share * shift
        self.var *= 1 - share
        self.var += share * (obs.var(0, correction=0) + (1 - share) * shift.square())
        self.count.copy_(total)

    def norm(self) -> ObservationNormalizer:
        """The present normalizer, which can be folded into a first layer."""
        return ObservationNormalizer(self.mean.cpu().numpy().copy(), self._std().cpu().numpy())

    def _std(self) -> Tensor:
        return self.var.sqrt().clamp(min=MIN_STD)


def mlp(dims: tuple[int, ...], output_gain: float, activation: Activation) -> nn.Sequential:
    """An MLP with orthogonal initialization, as in ManiSkill's PPO, which has tanh alone.

    `dims` are the layer sizes from input to output, `output_gain` the gain of the last layer.
    """
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(dims)):
        last = i == len(dims) - 2
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, output_gain if last else math.sqrt(2))
        nn.init.zeros_(linear.bias)
        modules += [linear] if last else [linear, ACTIVATION_MODULES[activation]()]
    return nn.Sequential(*modules)
