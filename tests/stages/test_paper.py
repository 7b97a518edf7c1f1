"""The configuration of the paper's scale: a few steps of it, for real."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnit_dist.core.splits import grid
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.dataset import AlignedDataset
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.stages.config_file import load_config
from nnit_dist.training.sampling import TrainingDistribution

PAPER = Path(__file__).parents[2] / "configs" / "paper.yaml"


@pytest.mark.long
def test_two_steps_at_the_scale_of_the_paper(sampler):
    """The 112M-parameter network on topologies up to 256 wide and four layers deep."""
    config = load_config(PAPER)
    seen = config.split().seen
    assert len(grid(config.topologies.widths, config.topologies.depths)) == 780
    assert max(max(hidden) for hidden in seen) == 256
    latents = TeacherLatents(3, config.align.ghn.latent_dim)
    task = replace(sampler.current, latents=latents, success=torch.rand(3))
    distribution = TrainingDistribution(seen, 0)
    mix = config.align.distill.max_teachers_per_mix
    large = HypernetModel(GHN(config.align.ghn, 35, 8, 256).eval(), [task], distribution, mix)
    settings = config.nnit.model_copy(
        update={"topologies_per_step": 2, "networks_per_topology": 1, "architectures": 4}
    )
    source = AlignedDataset(large, settings, 0)
    trainer = Trainer(settings, source, torch.device("cpu"), 0)
    assert 100e6 < sum(p.numel() for p in trainer.network.parameters()) < 120e6
    losses = [trainer.step(step) for step in range(2)]
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in losses)
