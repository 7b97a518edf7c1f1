"""PPO's update on rollouts of arrays: RLlib's learner with its own loop over minibatches.

The loss is that of RLlib's PPO (arXiv 1707.06347) without a KL term. RLlib's own loop
turns episodes into a batch step by step and measures every minibatch.

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

from nnit_dist.population.runner import Rollout, gaussian_logp

MIN_SPREAD = 1e-4  # of advantages, as RLlib has it


@dataclass
class Samples:
    """A training batch: `obs` [B, D], `actions` [B, A], the others [B]."""

    obs: Tensor
    actions: Tensor
    logp: Tensor
    advantages: Tensor
    targets: Tensor

    def __getitem__(self, rows: Tensor) -> "Samples":
        return Samples(**{name: value[rows] for name, value in vars(self).items()})


class RolloutLearner(PPOTorchLearner):
    """RLlib's PPO learner for `Rollout`s."""

    _module: Any
    _device: Any

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
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
        """Take `num_epochs` passes over the rollouts, in minibatches drawn anew in each.

        After a pass in which the policy went further than `max_kl` there is no other: the less
        spread is left, the further a step of one rate goes.
        """
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        config: Any = self.config
        own = config.learner_config_dict
        module = self._module[DEFAULT_MODULE_ID].unwrapped()
        parts = [
            samples_of(module, rollout, config.gamma, config.lambda_, self._device)
            for rollout in training_data.episodes
        ]
        joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in vars(parts[0])}
        samples = Samples(**joined)
        spread = samples.advantages.std(correction=0).clamp(min=MIN_SPREAD)
        samples.advantages = (samples.advantages - samples.advantages.mean()) / spread
        epochs: list[list[float]] = []
        for _ in range(num_epochs):
            epochs.append(self._epoch(module, samples, minibatch_size))
            if epochs[-1][2] > own["max_kl"]:
                break
        # From here on, so that what was sampled and what is learned see observations alike.
        if own["whiten"]:
            for rollout in training_data.episodes:
                module.normalizer.show(rollout.obs.to(self._device))
        policy, value, _ = np.mean(epochs, axis=0).tolist()
        self.metrics.log_value((DEFAULT_MODULE_ID, "policy_loss"), policy, window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, "vf_loss"), value, window=1)
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def _epoch(self, module: Any, samples: Samples, minibatch_size: int) -> list[float]:
        """One pass over the samples; means of both losses and of the divergence."""
        config: Any = self.config
        optimizer, parameters = self.get_optimizer(DEFAULT_MODULE_ID), list(module.parameters())
        found = []
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
            found.append(torch.stack([policy, value, kl]).detach())
        return torch.stack(found).mean(0).tolist()


@torch.no_grad()
def samples_of(
    module: Any, rollout: Rollout, gamma: float, lam: float, device: torch.device | str
) -> Samples:
    """A rollout as samples, with advantages (GAE, arXiv 1506.02438) that are not yet standardised.

    An episode that ends is cut off, not over: what its last observation is worth counts.
    """
    moved = {name: value.to(device) for name, value in vars(rollout).items()}
    values = module.compute_values({Columns.OBS: moved["obs"]})
    after = module.compute_values({Columns.OBS: moved["next_obs"]})
    surprise = moved["rewards"] + gamma * after - values
    advantages, ahead = torch.empty_like(surprise), torch.zeros_like(surprise[0])
    for t in reversed(range(len(surprise))):
        ahead = surprise[t] + gamma * lam * ahead * ~moved["ended"][t]
        advantages[t] = ahead
    return Samples(
        moved["obs"].flatten(0, 1),
        moved["actions"].flatten(0, 1),
        moved["logp"].flatten(),
        advantages.flatten(),
        (advantages + values).flatten(),
    )


def ppo_losses(module: Any, samples: Samples, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate loss, the squared error of the values, and the policy's KL divergence.

    The divergence of the policy that sampled from the module's is estimated as in
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
