import math

import pytest
import torch

from nnit_dist.nnit.flow import (
    flow_loss,
    integrate,
    mask_ids,
    masked_loss,
    noised,
    sample_time,
    unmask,
)


def test_path_runs_from_noise_to_data():
    x, noise = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(noised(x, noise, torch.zeros(4)), noise)
    assert torch.equal(noised(x, noise, torch.ones(4)), x)


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_a_perfect_prediction_is_reached_in_any_number_of_steps(steps):
    x, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    assert torch.allclose(integrate(lambda _, __: x, noise, steps), x, atol=1e-5)


def test_heun_converges_to_the_exact_flow_of_a_gaussian():
    """For data N(0, s^2) the best prediction is linear and the exact flow scales noise by s."""
    s = 0.5

    def predict(x, t):
        return x * t * s**2 / ((1 - t) ** 2 + t**2 * s**2)

    noise = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    errors = [
        float((integrate(predict, noise, n) - s * noise).abs().max()) for n in (8, 16, 32, 64)
    ]
    assert errors[-1] < 0.01
    assert errors == sorted(errors, reverse=True)


def test_flow_loss_is_per_sequence_ignores_padding_and_weighs_late_times_more():
    x, owner = torch.zeros(5, 4), torch.tensor([0, 0, 0, 2, 2])
    mask = torch.tensor([[1.0, 1, 0, 0]] * 3 + [[1.0, 1, 1, 1]] * 2)
    time = torch.tensor([0.0, 0.5, 0.5])
    wrong_padding = x + (1 - mask) * 100
    assert flow_loss(wrong_padding, x, mask, time, owner_M=owner).tolist() == [0, 0, 0]
    assert flow_loss(x + 1, x, mask, time, owner_M=owner).tolist() == pytest.approx([1, 0, 4])


def test_times_are_inside_the_unit_interval():
    generator = torch.Generator().manual_seed(0)
    times = [sample_time(generator) for _ in range(1000)]
    assert 0 < min(times) < 0.2 < 0.8 < max(times) < 1
    near = [sample_time(generator, mean=2.0, std=0.5) for _ in range(1000)]
    assert min(near) > 0.5


def test_masking_follows_its_rate():
    ids, generator = torch.arange(1000), torch.Generator().manual_seed(0)
    shares = [
        float((mask_ids(ids, 5000, rate, generator) == 5000).float().mean())
        for rate in (0.0, 0.5, 1.0)
    ]
    assert shares[0] == 0
    assert shares[2] == 1
    assert abs(shares[1] - 0.5) < 0.05


def test_masked_loss_is_per_sequence_and_counts_hidden_tokens_only():
    ids, owner = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1])
    allowed = torch.ones(4, 3, dtype=torch.bool)
    allowed[2, 0] = False
    logits = torch.zeros(4, 3)
    logits[0] = torch.tensor([-50.0, 50, -50])  # wrong, but its token is visible
    hidden = torch.tensor([False, True, True, False])
    loss = masked_loss(logits, ids, hidden, allowed, owner_A=owner, S=3)
    assert loss.tolist() == pytest.approx([math.log(3), math.log(2), 0])


def test_unmask_draws_allowed_tokens_and_keeps_given_ones():
    allowed = torch.zeros(3, 6, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 2] = allowed[1, 3] = allowed[2, 4] = True
    ids = torch.full((50, 3), 5)
    ids[:, 2] = 4
    drawn = unmask(
        lambda masked: torch.zeros(*masked.shape, 6),
        ids,
        5,
        allowed,
        generator=torch.Generator().manual_seed(0),
    )
    assert (drawn[:, 0] == 1).all()
    assert set(drawn[:, 1].tolist()) == {2, 3}
    assert (drawn[:, 2] == 4).all()
