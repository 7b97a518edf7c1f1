"""PPO's update on rollouts of arrays: RLlib's learner with another loop over minibatches.

The loss is that of RLlib's PPO (arXiv 1707.06347) without a KL term. RLlib's loop is slower: it
turns episodes into a batch step by step and computes statistics of every minibatch.

Shapes: T steps, N environments, B samples, D observations, A actions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from nnit_dist.population.module import ActorCriticModule
from nnit_dist.population.runner import Rollout, gaussian_logp

MIN_STD = 1e-4  # of advantages, as in RLlib


@dataclass
class Samples:
    """A training batch: `obs` [B, D], `actions` [B, A], the other fields [B]."""

    obs: Tensor
    actions: Tensor
    logp: Tensor
    advantages: Tensor
    targets: Tensor

    @classmethod
    def concatenate(cls, parts: list["Samples"]) -> "Samples":
        """All samples of several batches, in order."""
        return cls(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])}
        )

    def __getitem__(self, rows: Tensor) -> "Samples":
        return Samples(**{name: value[rows] for name, value in vars(self).items()})


class RolloutLearner(PPOTorchLearner):
    """RLlib's PPO learner, which takes rollouts instead of episodes."""

    _module: Any
    _device: Any

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register Adam for all parameters of a module; RLlib calls this."""
        params = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(params, fused=True),
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    def update(  # type: ignore[override]  # as `PPO.training_step` calls it
        self,
        *,
        training_data: Any,
        timesteps: Any,
        num_epochs: int,
        minibatch_size: int,
        **kwargs: Any,
    ) -> Any:
        """Take up to `num_epochs` passes over the rollouts, each in new random minibatches.

        The update ends after a pass whose mean KL divergence exceeds `max_kl`. The smaller the
        policy's standard deviation, the larger is the divergence that a step causes.

        Args:
            training_data: RLlib's container, with the rollouts as its `episodes`.
            timesteps: RLlib's counters, which schedules depend on.

        Returns:
            RLlib's metrics.
        """
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        config: Any = self.config
        settings = config.learner_config_dict
        module = self._module[DEFAULT_MODULE_ID].unwrapped()
        samples = Samples.concatenate(
            [
                samples_of(
                    module,
                    rollout,
                    gamma=config.gamma,
                    gae_lambda=config.lambda_,
                    device=self._device,
                )
                for rollout in training_data.episodes
            ]
        )
        std = samples.advantages.std(correction=0).clamp(min=MIN_STD)
        samples.advantages = (samples.advantages - samples.advantages.mean()) / std
        epochs: list[list[float]] = []
        for _ in range(num_epochs):
            epochs.append(self._epoch(module, samples, minibatch_size))
            if epochs[-1][2] > settings["max_kl"]:
                break
        # Only now, so that sampling and the update used the same normalizer.
        if settings["normalize_observations"]:
            for rollout in training_data.episodes:
                module.normalizer.show(rollout.obs.to(self._device))
        policy, value, _ = np.mean(epochs, axis=0).tolist()
        self.metrics.log_value((DEFAULT_MODULE_ID, "policy_loss"), policy, window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, "vf_loss"), value, window=1)
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def _epoch(self, module: Any, samples: Samples, minibatch_size: int) -> list[float]:
        """Take a pass over the samples; returns the means of both losses and of the divergence."""
        config: Any = self.config
        optimizer, parameters = self.get_optimizer(DEFAULT_MODULE_ID), list(module.parameters())
        measured = []
        order = torch.randperm(len(samples.logp)).to(self._device)
        for rows in order.split(minibatch_size):
            policy, value, kl = ppo_losses(module, samples[rows], config.clip_param)
            # The entropy of a Gaussian is the sum of its log-stds, up to a constant.
            bonus = config.entropy_coeff * module.log_std.sum()
            loss = policy + config.vf_loss_coeff * value - bonus
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            measured.append(torch.stack([policy, value, kl]).detach())
        return torch.stack(measured).mean(0).tolist()


@torch.no_grad()
def samples_of(
    module: ActorCriticModule,
    rollout: Rollout,
    *,
    gamma: float,
    gae_lambda: float,
    device: torch.device | str,
) -> Samples:
    """The samples of a rollout on `device`, with advantages (GAE, arXiv 1506.02438).

    Advantages are not standardized yet. Episodes are truncated, never terminated, so the value of
    the last observation counts.
    """
    moved = {name: value.to(device) for name, value in vars(rollout).items()}
    values = module.compute_values({Columns.OBS: moved["obs"]})
    next_values = module.compute_values({Columns.OBS: moved["next_obs"]})
    deltas = moved["rewards"] + gamma * next_values - values
    advantages, advantage = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + gamma * gae_lambda * advantage * ~moved["ended"][t]
        advantages[t] = advantage
    return Samples(
        moved["obs"].flatten(0, 1),
        moved["actions"].flatten(0, 1),
        moved["logp"].flatten(),
        advantages.flatten(),
        (advantages + values).flatten(),
    )


def ppo_losses(
    module: ActorCriticModule, samples: Samples, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate loss, the mean squared error of the values, and the KL divergence.

    The divergence is from the policy that sampled to that of the module, estimated as in
    http://joschu.net/blog/kl-approx.html.
    """
    batch = {Columns.OBS: samples.obs}
    mean, log_std = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS].chunk(2, -1)
    log_ratio = gaussian_logp(mean, log_std, samples.actions) - samples.logp
    ratio = log_ratio.exp()
    gains = samples.advantages * ratio
    bounded = samples.advantages * ratio.clamp(1 - clip, 1 + clip)
    error = module.compute_values(batch) - samples.targets
    kl = (ratio - 1 - log_ratio).mean()
    return -torch.minimum(gains, bounded).mean(), error.square().mean(), kl
