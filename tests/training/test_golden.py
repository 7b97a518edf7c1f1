"""Golden loss curves: both trainers still take the steps that they took.

After a change that is meant to alter them: `python tests/training/test_golden.py`, and say why in
the commit.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import STEPS, distiller_of

from nnit_dist.nnit.config import NNiTConfig, TransformerConfig
from nnit_dist.nnit.dataset import AlignedDataset
from nnit_dist.nnit.trainer import Trainer

GOLDEN = Path(__file__).parent / "golden" / "curves.json"


def nnit_curve(sampler) -> list[dict[str, float]]:
    config = NNiTConfig(
        transformer=TransformerConfig(32, 2, 2),
        steps=STEPS,
        topologies_per_step=2,
        networks_per_topology=2,
        architectures=8,
        lr=3e-3,
        bf16=False,
    )
    trainer = Trainer(config, AlignedDataset(sampler, config, 0), torch.device("cpu"), 0)
    return [trainer.step(step) for step in range(STEPS)]


def distill_curve(directory: Path) -> list[dict[str, float]]:
    distiller = distiller_of(directory)
    return [distiller.step(step) for step in range(STEPS)]


def test_shares_of_a_distillation_step_average_to_the_whole(tmp_path, monkeypatch):
    gradients = []

    def keep(parameters):
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

    monkeypatch.setattr("nnit_dist.hypernet.distill.average_gradients", keep)
    rows = [distiller_of(tmp_path, share).step(0) for share in ((0, 1), (0, 2), (1, 2))]
    whole, *halves = gradients
    assert torch.allclose(torch.stack(halves).mean(0), whole, atol=1e-6)
    assert not torch.allclose(halves[0], whole, atol=1e-4)
    means = np.mean([row["action_mse"] for row in rows[1:]])
    assert means == pytest.approx(rows[0]["action_mse"], rel=1e-5)


@pytest.mark.parametrize("name", ["nnit", "distill"])
def test_the_curve_is_the_golden_one(name, sampler, tmp_path):
    curve = nnit_curve(sampler) if name == "nnit" else distill_curve(tmp_path)
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(curve) == len(golden)
    # Rounding differs by machine, and grows from step to step.
    for step, (row, known) in enumerate(zip(curve, golden, strict=True)):
        assert row == pytest.approx(known, rel=1e-3 * (1 + step / 4)), step


def rewrite() -> None:
    import tempfile

    from support.networks import small_sampler

    with tempfile.TemporaryDirectory() as directory:
        curves = {"nnit": nnit_curve(small_sampler()), "distill": distill_curve(Path(directory))}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    rewrite()
