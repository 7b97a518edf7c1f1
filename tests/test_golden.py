"""Golden loss curves: both trainers still take the steps that they took.

After a change that is meant to alter them: `python tests/test_golden.py`, and say why in the
commit.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TASK, random_policy

from nnit_dist.align.distill import Distiller
from nnit_dist.align.lessons import Lessons
from nnit_dist.nnit.source import AlignedSource
from nnit_dist.nnit.train import NNiTConfig
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.nnit.transformer import TransformerConfig
from nnit_dist.normalization import InputNorm

GOLDEN = Path(__file__).parent / "golden" / "curves.json"
STEPS = 40


def nnit_curve(sampler) -> list[dict[str, float]]:
    config = NNiTConfig(
        transformer=TransformerConfig(32, 2, 2),
        steps=STEPS,
        topologies=2,
        networks=2,
        architectures=8,
        lr=3e-3,
        bf16=False,
    )
    trainer = Trainer(config, AlignedSource([sampler], config, 0), torch.device("cpu"), 0)
    return [trainer.step(step) for step in range(STEPS)]


def distiller_of(directory: Path, share: tuple[int, int] = (0, 1)) -> Distiller:
    rng = np.random.default_rng(0)
    obs = [rng.normal(size=(200, 35)).astype(np.float32) for _ in range(3)]
    norm = InputNorm(np.zeros(35, np.float32), np.ones(35, np.float32))
    teachers = [random_policy((16, 16), seed) for seed in range(3)]
    Lessons.of(norm, obs, teachers).save(directory / "states.safetensors")
    config = {
        "distill": {"steps": STEPS, "meta_batch": 2, "states": 32},
        "ghn": {"embed_dim": 16, "channels": [8, 8], "latent_dim": 4},
        "topologies": "[[8], [16, 8], [32, 16]]",
        "variation": 2,
        "max_width": 32,
        "tasks": [
            {
                "task": TASK,
                "states": str(directory / "states.safetensors"),
                "teachers": [("a", True), ("b", True), ("c", False)],
            }
        ],
        "seed": 0,
    }
    return Distiller(config, torch.device("cpu"), share)


def distill_curve(directory: Path) -> list[dict[str, float]]:
    distiller = distiller_of(directory)
    return [distiller.step(step) for step in range(STEPS)]


def test_shares_of_a_distillation_step_average_to_the_whole(tmp_path, monkeypatch):
    gradients = []

    def keep(parameters):
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

    monkeypatch.setattr("nnit_dist.align.distill.average_gradients", keep)
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

    from conftest import small_sampler

    with tempfile.TemporaryDirectory() as directory:
        curves = {"nnit": nnit_curve(small_sampler()), "distill": distill_curve(Path(directory))}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    rewrite()
