"""What a trial trains."""

import pytest
from support.networks import TASK
from support.searches import CONFIG

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.search.objective import NNiTObjective, work
from nnit_dist.search.results import RUNGS
from nnit_dist.stages.config import with_values
from nnit_dist.stages.config_file import load_config


def test_a_larger_network_trains_fewer_steps(tmp_path):
    base, run = load_config(CONFIG), shipped(TASK)
    sampler = HypernetModel.load(run.hypernet())
    deeper = with_values(base, {"nnit.transformer.depth": 8}, "")
    assert work(deeper.nnit, sampler) == pytest.approx(2 * work(base.nnit, sampler))
    rungs = RUNGS["asha"]
    assert NNiTObjective(deeper, base, run, tmp_path, rungs=rungs).until[-1] == base.nnit.steps // 2
    assert NNiTObjective(base, base, run, tmp_path, rungs=rungs).until[-1] == base.nnit.steps
