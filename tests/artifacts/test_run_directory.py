"""Where the files of a run lie, and how those of older runs are read."""

import copy

import pytest
import yaml

from nnit_dist.artifacts.legacy import advice, upgrade_config
from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.errors import NnitError
from nnit_dist.stages.config import known_keys

OLD = """
align:
  mix_loss: 0.1
  distill: {meta_batch: 8, turns: {a: 2}, blended: 3, smoothness_weight: 0.0, lr: 0.1}
nnit: {time_mean: -0.8, topologies: 4, networks: 2, width_jitter: 1.0}
population:
  recipe: {whiten: true}
  recipes: {a: {whiten: false}}
topologies: {unseen: {apart: 3, width: 2}}
evaluate: {samples: 2, episodes: 9, unseen_topologies: {apart: 1}}
seed: 1
"""
NEW = """
align:
  max_average_drop: 0.1
  distill: {topologies_per_step: 8, task_weights: {a: 2}, max_teachers_per_mix: 3, lr: 0.1}
nnit:
  {logit_mean: -0.8, topologies_per_step: 4, networks_per_topology: 2, condition_width_noise: 1.0}
population:
  recipe: {normalize_observations: true}
  recipes: {a: {normalize_observations: false}}
topologies: {unseen: {bottleneck: 3, width: 2}}
evaluate: {episodes: 9}
generate: {samples: 2, unseen_topologies: {bottleneck: 1}}
seed: 1
"""


def test_configurations_of_older_runs_are_read_under_todays_names():
    old, new = yaml.safe_load(OLD), yaml.safe_load(NEW)
    before = copy.deepcopy(old)
    assert upgrade_config(old) == new == upgrade_config(new)
    assert old == before


@pytest.mark.parametrize("run", [shipped("PushCube-v1"), shipped("PickCube-v1")], ids=str)
def test_every_setting_of_a_shipped_run_is_a_key_of_today(run):
    keys = {key.path for key in known_keys()}
    free = ("population.recipes.", "population.architectures_by_task.", "topologies.unseen.")
    free += ("align.distill.task_weights.", "nnit.task_weights.", "generate.unseen_topologies.")

    def leaves(config, path=""):
        for name, value in config.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{path}{name}.")
            else:
                yield path + name

    for stage in ("population", "align", "train", "evaluate"):
        for key in leaves(run.settings(stage)):
            assert key in keys or key.startswith(free), key


def test_a_renamed_key_says_its_new_name_and_a_key_of_today_says_nothing():
    assert advice("nnit.drop_rate") == "'nnit.drop_rate' is called 'nnit.condition_dropout' now"
    assert not [key.path for key in known_keys() if advice(key.path)]


def test_what_is_not_finished_names_the_command_that_does_it(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(NnitError, match="run `nnit align` with the same configuration first"):
        run.require("align")
    with pytest.raises(NnitError, match="is not finished; run `nnit run` for all stages"):
        run.require("generate")


def test_data_for_refining_is_found_under_its_old_name_too(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.distillation_data("t").name == "distillation-t.safetensors"
    run.align.path.mkdir()
    older = run.align.path / "lessons-t.safetensors"
    older.touch()
    assert run.distillation_data("t") == older
    (run.align.path / "distillation-t.safetensors").touch()
    assert run.distillation_data("t") != older


def test_the_last_round_is_found_by_its_number(tmp_path):
    align = RunDirectory(tmp_path).align
    align.path.mkdir()
    for number in (0, 2, 10, 9):
        align.states("t", number).touch()
    assert align.last_states("t") == align.states("t", 10)
