"""Spaces: what they hold, what they are refused for, and the repository's own."""

import json

import pytest
from support.searches import CONFIG, ROOT, SPACE, space_file

from nnit_dist.core.errors import NnitError
from nnit_dist.search.space import load_space
from nnit_dist.stages.config import with_values
from nnit_dist.stages.config_file import load_config


def test_a_space_is_read_with_the_defaults_of_a_configuration(tmp_path):
    config = load_config(CONFIG)
    space = load_space(space_file(tmp_path), config)
    assert (space.name, space.stage) == ("space", "train")
    assert space.defaults(config) == {"nnit.lr": config.nnit.lr, "nnit.ema": config.nnit.ema}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SPACE = {}", "STAGE=None; it names what a trial trains: population, align, train"),
        ('STAGE = "train"', "has no SPACE"),
        (
            'STAGE = "train"\nSPACE = {"nnit.lr": 3}',
            "SPACE has 3 for nnit.lr; it takes tune.uniform",
        ),
        (SPACE.replace("nnit.lr", "nnit.rate"), "there is no key 'nnit.rate'"),
        (SPACE.replace("0.995]", "1.5]"), "SPACE leaves out nnit.ema=0.995, the configuration's"),
        (SPACE.replace("0.9,", "1.5,").replace("choice(", "choice([1.5] * 999 + "), "less than 1"),
        (SPACE.replace("nnit.lr", "nnit.steps"), "do not read nnit.steps; they read nnit.*"),
        (SPACE.replace("nnit.lr", "align.distill.lr"), "do not read align.distill.lr"),
        (
            SPACE.replace("train", "align").replace("nnit.lr", "align.distill.steps"),
            "not align.distill.steps, align.distill.teacher_episodes",
        ),
    ],
)
def test_a_space_that_does_not_fit_is_refused(tmp_path, text, expected):
    with pytest.raises(NnitError, match=expected):
        load_space(space_file(tmp_path, text), load_config(CONFIG))


def test_the_default_of_a_recipe_is_the_tasks_and_what_it_says_itself_is_not_searched(tmp_path):
    text = """
from ray import tune
STAGE = "population"
SPACE = {"population.recipe.env_steps": tune.randint(1, 10**7)}
"""
    file = tmp_path / "config.yaml"
    file.write_text("name: x\ntasks: [PickCube-v1]\n")
    config = load_config(file)
    known = config.population.recipe_of("PickCube-v1").env_steps
    assert known != config.population.recipe.env_steps
    assert load_space(space_file(tmp_path, text), config).defaults(config) == {
        "population.recipe.env_steps": known
    }
    own = {"population.recipes": {"PickCube-v1": {"env_steps": 100_000}}}
    with pytest.raises(NnitError, match="has a env_steps of its own; search that, not"):
        load_space(space_file(tmp_path, text), with_values(config, own, "test"))
    other = with_values(config, own | {"tasks": ["PushCube-v1", "PickCube-v1"]}, "test")
    text = text.replace("recipe.", "recipes.PickCube-v1.")
    with pytest.raises(NnitError, match="the search is on PushCube-v1"):
        load_space(space_file(tmp_path, text), other)


def test_defaults_are_written_as_a_search_writes_them(tmp_path):
    domain = '"nnit.condition_width_noise": tune.randint(0, 5)'
    text = f'from ray import tune\nSTAGE = "train"\nSPACE = {{{domain}}}'
    config = load_config(CONFIG)
    assert config.nnit.condition_width_noise == 3.0
    defaults = load_space(space_file(tmp_path, text), config).defaults(config)
    assert json.dumps(defaults) == '{"nnit.condition_width_noise": 3}'


@pytest.mark.parametrize("name", ["nnit", "nnit_pbt", "ghn", "population"])
def test_the_spaces_of_the_repository_fit_the_quickstart(name):
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    space = load_space(ROOT / "tuning" / f"{name}.py", config)
    with_values(config, space.defaults(config), "defaults")
