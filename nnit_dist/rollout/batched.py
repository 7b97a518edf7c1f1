"""Episodes of many networks at once: each environment has its own network and seed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.envs.batch_env import BatchEnv
from nnit_dist.rollout.episodes import Part, Rollouts


@dataclass(frozen=True)
class _Episode:
    part: int
    policy: Policy
    seed: int
    noise: float


def run_parts(env: BatchEnv, parts: list[Part], rewarded: bool) -> list[Rollouts]:
    """Run all episodes of `parts` in waves of `env.num_envs` episodes.

    In the same simulation, results equal those of `episodes.run_part`, except that batching
    may change the last bits of a network's outputs.
    """
    started = time.perf_counter()
    episodes = [
        _Episode(index, part.policy, seed, part.noise)
        for index, part in enumerate(parts)
        for seed in part.seeds
    ]
    record = any(part.record for part in parts)
    waves = [
        _run_wave(env, episodes[i : i + env.num_envs], record)
        for i in range(0, len(episodes), env.num_envs)
    ]
    columns = [np.concatenate(column) for column in zip(*waves, strict=True)]
    owners = np.array([episode.part for episode in episodes])
    share = (time.perf_counter() - started) / len(episodes)
    return [
        _of_part(part, [column[owners == index] for column in columns], rewarded, share)
        for index, part in enumerate(parts)
    ]


def _of_part(part: Part, columns: list[np.ndarray], rewarded: bool, share: float) -> Rollouts:
    once, at_end, returns, seen = columns
    return Rollouts(
        part.seeds,
        once,
        at_end,
        returns if rewarded else np.full(len(returns), np.nan),
        seen if part.record else None,
        share * len(part.seeds),
    )


def _run_wave(env: BatchEnv, episodes: list[_Episode], record: bool) -> tuple[np.ndarray, ...]:
    """success_once, success_at_end, return, and observations [E, steps or 0, obs_dim]."""
    count, steps = len(episodes), env.info.max_episode_steps
    networks = {id(episode.policy): episode.policy for episode in episodes}
    position = {key: index for index, key in enumerate(networks)}
    batch = RowPolicies(
        list(networks.values()), [position[id(e.policy)] for e in episodes], env.device
    )
    noise = _noise(episodes, steps, env.info.act_dim, env.device)
    actions = torch.zeros(env.num_envs, env.info.act_dim, device=env.device)
    obs = env.reset([episode.seed for episode in episodes], range(count))
    once = torch.zeros(count, dtype=torch.bool, device=env.device)
    success, total, seen = once, torch.zeros(count, dtype=torch.float64, device=env.device), []
    for step in range(steps):
        if record:
            seen.append(obs.cpu().numpy())
        actions[:count] = (batch.act(obs) + noise[:, step]).clamp(-1, 1)
        every, reward, flags = env.step(actions)
        obs, success = every[:count], flags[:count]
        once, total = once | success, total + reward[:count]
    empty = np.zeros((count, 0, env.info.obs_dim), np.float32)
    observations = np.stack(seen, axis=1) if record else empty
    return once.cpu().numpy(), success.cpu().numpy(), total.cpu().numpy(), observations


class RowPolicies:
    """Policies of one task, each of which acts on its own rows of a batch of observations.

    Networks of one depth are computed together; depths go one after the other.

    Args:
        policies: networks of any hidden widths and depths.
        owners: for each of N rows, which policy acts on it (an index into `policies`).
        device: where weights and observations lie.
    """

    def __init__(
        self, policies: Sequence[Policy], owners: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners):
            rows.setdefault(owner, []).append(row)
        by_depth: dict[int, list[int]] = {}
        for owner in rows:
            by_depth.setdefault(policies[owner].topology.depth, []).append(owner)
        # For each depth: its networks, their rows (padded), and the number of rows per network.
        self._groups: list[tuple[MLPBatch, torch.Tensor, int]] = []
        places, start = [0] * len(owners), 0  # index of each row in the outputs of all groups
        for group in by_depth.values():
            longest = max(len(rows[owner]) for owner in group)
            padded: list[int] = []
            for owner in group:
                for place, row in enumerate(rows[owner], start + len(padded)):
                    places[row] = place
                padded += rows[owner] + [0] * (longest - len(rows[owner]))
            start += len(padded)
            networks = MLPBatch.from_policies([policies[owner] for owner in group])
            own_rows = torch.tensor(padded, device=device)
            self._groups.append((networks.to(device), own_rows, longest))
        self._places = torch.tensor(places, device=device)

    @torch.inference_mode()
    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions [N, act_dim] in [-1, 1] for observations [N, obs_dim]."""
        outputs, obs_dim = [], obs.shape[1]
        for networks, rows, each in self._groups:
            inputs = obs.index_select(0, rows).view(-1, each, obs_dim)
            outputs.append(networks.forward(inputs).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self._places).clamp_(-1, 1)


def _noise(
    episodes: list[_Episode], steps: int, act_dim: int, device: torch.device
) -> torch.Tensor:
    """Action noise [E, steps, act_dim], drawn from each episode's seed as in `run_part`."""
    noise = np.zeros((len(episodes), steps, act_dim))
    for row, episode in enumerate(episodes):
        if episode.noise:
            rng = np.random.default_rng(episode.seed)
            noise[row] = rng.normal(0.0, episode.noise, (steps, act_dim))
    return torch.from_numpy(noise.astype(np.float32)).to(device)
