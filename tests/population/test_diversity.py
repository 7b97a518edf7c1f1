"""How diverse a population is said to be."""

from dataclasses import replace

import numpy as np
import pytest
from support.networks import TASK, random_policy

from nnit_dist.core.zoo import Member
from nnit_dist.population.diversity import (
    action_distances,
    map_in_two_dimensions,
    picture,
    population_stats,
)


def member(trial: str, seed: int, hidden: tuple[int, ...], success: float, steps: int) -> Member:
    policy = random_policy(hidden, seed, f"{trial}_{steps}")
    return Member(policy, trial, 0, steps, success, 0.0, 1.0)


MEMBERS = [
    member("a", 1, (16, 8), 0.2, 100),
    member("a", 1, (16, 8), 0.6, 200),  # acts as it did
    member("b", 2, (8,), 0.4, 100),
    member("c", 3, (16, 16), 0.9, 300),
]


def test_differences_of_actions_are_those_of_what_networks_do():
    one, other = random_policy((16, 8), 1), random_policy((16, 8), 2)
    order = np.random.default_rng(0).permutation(16)
    (first, bias), (second, more), last = one.layers
    shuffled = replace(one, layers=[(first[order], bias[order]), (second[:, order], more), last])
    states = np.random.default_rng(1).normal(size=(40, 35)).astype(np.float32)
    found = action_distances([one, shuffled, other], states)
    assert found[0, 1] == pytest.approx(0, abs=1e-6)
    assert found[0, 2] == pytest.approx(np.abs(one.act(states) - other.act(states)).mean())
    assert np.allclose(found, found.T)


def test_points_in_a_plane_are_mapped_as_far_apart_as_they_are():
    points = np.random.default_rng(0).normal(size=(9, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    mapped = map_in_two_dimensions(distances)
    assert np.allclose(np.linalg.norm(mapped[:, None] - mapped[None], axis=-1), distances)


def test_a_population_is_counted_and_compared(tmp_path):
    stats = population_stats(MEMBERS)
    assert (stats.members, stats.trials, stats.architectures) == (4, 3, 3)
    assert stats.env_steps == 200 + 100 + 300
    assert stats.widths == {(1, 8): 1, (2, 16): 3, (2, 8): 1}  # of trials, not of snapshots
    assert stats.success == pytest.approx([0.2, 0.35, 0.5, 0.675, 0.9])
    assert stats.best_success == pytest.approx((0.6 + 0.4 + 0.9) / 3)
    assert stats.between_snapshots == pytest.approx(0, abs=1e-6)
    assert stats.between_trials > 0.1
    path = tmp_path / "stats.png"
    picture(TASK, stats).savefig(path)
    assert path.stat().st_size > 10_000


def test_a_single_member_has_nothing_to_be_compared_with():
    stats = population_stats(MEMBERS[3:])
    assert stats.between_trials is stats.between_snapshots is None
    picture(TASK, stats)
