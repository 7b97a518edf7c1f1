import json
from pathlib import Path

import pytest

from nnit_dist.core.errors import NnitError
from nnit_dist.stages.config import known_keys, value_of
from nnit_dist.stages.config_file import load_config
from nnit_dist.stages.pipeline import Pipeline

SMOKE = Path(__file__).parents[2] / "configs/smoke.yaml"

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.split().seen


def test_unknown_key_is_named_with_its_path_and_the_nearest_one(tmp_path):
    path = write(tmp_path, "name: x\ntasks: [PushCube-v1]\nalign: {distill: {stepz: 3}}\n")
    with pytest.raises(NnitError, match=r"unknown key 'align.distill.stepz'. Did you mean steps"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: [PushCube-v1]", "'name' is missing"),
        ("name: x\ntasks: [t]\nnnit: {steps: -1}", r"'nnit.steps': .*greater than 0, got -1"),
        ("name: x\ntasks: [t]\ntopologies: {widths: [4, 64]}", "width 4 is less than nnit.patch=8"),
        (
            "name: x\ntasks: [t]\ntopologies: {widths: [16, 24], unseen_widths: [24]}",
            "24 is both a training and an unseen",
        ),
        ("name: x\ntasks: [t]\ntopologies: {variation: 8}", "variation=8 is too much: .*At most 7"),
        (
            "name: x\ntasks: [t]\ntopologies: {widths: [16, 26], unseen_widths: []}",
            "variation=5 is too much: .*At most 4",
        ),
        ("name: x\ntasks: [t]\nnnit: {transformer: {heads: 3}}", "heads divide width"),
        ("name: x\ntasks: [t]\npopulation: {recipe: {envs: 3}}", "no multiple of envs=3"),
        ("name: x\ntasks: [t]\npopulation: {recipe: {batch: 128}}", "minibatch=256 is more than"),
        (
            "name: x\ntasks: [t]\npopulation: "
            "{recipe: {batch: 1024}, recipes: {t: {minibatch: 1536}}}",
            "the recipe of t: minibatch=1536 is more than batch=1024.$",
        ),
        ("name: x\ntasks: [t, t]", "a task is named twice"),
        (
            "name: x\ntasks: [t]\nnnit: {task_weights: {u: 2}}",
            "nnit.task_weights: there is a weight for u, which is not among the tasks",
        ),
        (
            "name: x\ntasks: [t]\nnnit: {task_weights: {t: 0}}",
            r"'nnit.task_weights.t': .*greater than 0, got 0",
        ),
        ("name: x\ntasks: [t]\npopulation: {recipes: {u: {}}}", "recipes has u, which is not in"),
        (
            "name: x\ntasks: [t]\npopulation: {architectures_by_task: {u: [[8]]}}",
            "population.architectures_by_task has u, which is not in",
        ),
        (
            "name: x\ntasks: [t]\npopulation: {architectures_by_task: {t: [[64, 24]]}}",
            r"population has 64x24, but 24 is in topologies.unseen_widths",
        ),
        ("name: x\ntasks: []", "'tasks': .*at least 1 item"),
        ("name: x\ntasks: [t]\nnnit: {transformer: {widht: 3}}", "Did you mean width"),
        ("name: x\ntasks: [t]\ntopologies: {unseen_widths: [24, 136]}", "136, more than twice"),
        (
            "name: x\ntasks: [t]\ntraining: {workers: 9}",
            "workers=9 are more than .*topologies_per_step=8",
        ),
        (
            "name: x\ntasks: [t]\nnnit: {time_mean: 1}",
            "'nnit.time_mean' is called 'nnit.logit_mean'",
        ),
        ("name: x\ntasks: [t]\nevaluate: {samples: 1}", "is called 'generate.samples' now"),
        ("name: x\ntasks: [t]\ntopologies: {unseen: {apart: 1}}", "'topologies.unseen.bottleneck'"),
        (
            "name: x\ntasks: [t]\npopulation: {recipes: {t: {whiten: true}}}",
            "called 'population.recipes.t.normalize_observations' now",
        ),
        (
            "name: x\ntasks: [t]\nalign: {distill: {smoothness_weight: 1.0}}",
            "'align.distill.smoothness_weight' is gone",
        ),
        ("- a list", "holds no configuration"),
        ("name: [", "not valid YAML"),
    ],
)
def test_bad_configurations(tmp_path, text, expected):
    with pytest.raises(NnitError, match=expected):
        load_config(write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(NnitError, match="there is no configuration"):
        load_config(tmp_path / "none.yaml")


def test_overrides(tmp_path):
    path = write(tmp_path, "name: x\ntasks: [PushCube-v1]\n")
    config = load_config(path, ["nnit.steps=7", "align.ghn.channels=[8, 8]"])
    assert (config.nnit.steps, config.align.ghn.channels) == (7, [8, 8])
    with pytest.raises(NnitError, match=r"unknown key 'nnit.stepps'"):
        load_config(path, ["nnit.stepps=7"])
    with pytest.raises(NnitError, match="write it as key.path=value"):
        load_config(path, ["nnit.steps"])


def test_every_key_has_a_meaning_and_the_default_that_a_configuration_has(tmp_path):
    config = load_config(write(tmp_path, "name: x\ntasks: [PushCube-v1]\n"))
    keys = known_keys()
    assert {key.path.split(".")[0] for key in keys} == set(type(config).model_fields)
    for key in keys:
        assert key.meaning, key.path
        if key.path not in ("name", "tasks"):
            assert json.loads(key.default) == value_of(config, key.path), key.path
    assert [key.path for key in known_keys("nnit.transformer.")] == [
        f"nnit.transformer.{name}" for name in ("width", "depth", "heads")
    ]
    with pytest.raises(NnitError, match=r"begins with 'nnit.stepz'. Did you mean nnit.steps"):
        known_keys("nnit.stepz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b", "the key 'name' is there twice"),
        ("name: a\nnnit: {steps: 1, lr: 0.1, steps: 2}", "the key 'steps' is there twice"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("[" * 5000, "not valid YAML"),
        ("x" * (1 << 21), "too large"),
        ("name: ä".encode("utf-16"), "not text in UTF-8"),
        (b"name: \xff\xfe", "not text in UTF-8"),
    ],
)
def test_files_that_are_no_configuration_say_why(text, expected, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(NnitError, match=expected):
        load_config(path)
    with pytest.raises(NnitError, match="cannot read"):
        load_config(tmp_path)


NAN_AND_INFINITE = (
    *("nnit.lr=.inf", "nnit.logit_mean=.nan", "generate.guidance=.inf", "population.cpus=.inf"),
    *("population.recipe.lr=.inf", "align.distill.weight_noise=.inf"),
)
SENSELESS = {
    "topologies.depths=[0]": "greater than 0",
    "topologies.depths=[-1]": "greater than 0",
    "topologies.depths=[1, 1]": "has a value twice",
    "topologies.depths=[30]": "more than 5,000,000 topologies",
    "topologies.depths=[1000]": "less than or equal to 32",
    "topologies.widths=[1000000]": "less than or equal to 8192",
    "topologies.unseen={combination: -3}": "greater than or equal to 0",
    "topologies.unseen={combination: 1000000}": "asks for 1000000 topologies",
    "topologies.unseen={width: 5}": "give only 0",
    "name=../escaped": "the name of a run '../escaped' cannot be a name",
    "name=.": "cannot be a name",
    "population.seeds=[0, 0]": "is there twice",
    "population.architectures=[[16, 8], 16x8-tanh]": "is there twice",
    "population.architectures_by_task={PushCube-v1: []}": "at least 1 item",
    "ray.address=''": "at least 1 character",
    "ray.actors=1000000": "less than or equal to 100000",
    f"seed=0x{'F' * 5000}": "a very large number",
}


@pytest.mark.parametrize("override", NAN_AND_INFINITE)
def test_no_value_is_infinite_or_no_number(override):
    with pytest.raises(NnitError, match="finite"):
        load_config(SMOKE, [override])


@pytest.mark.parametrize("override", SENSELESS)
def test_senseless_values_are_refused_before_anything_is_trained(override):
    with pytest.raises(NnitError, match=SENSELESS[override]):
        load_config(SMOKE, [override])


def test_guidance_without_dropped_conditions_is_refused():
    with pytest.raises(NnitError, match="needs some nnit.condition_dropout"):
        load_config(SMOKE, ["generate.guidance=3", "nnit.condition_dropout=0"])


def test_cpus_that_a_local_ray_never_has_are_refused(tmp_path):
    pipeline = Pipeline(load_config(SMOKE, ["population.cpus=1000"]), tmp_path)
    with pytest.raises(NnitError, match="population.cpus asks for 1000 CPUs"):
        pipeline.do("population")
    pipeline = Pipeline(load_config(SMOKE, ["training.cpus=500", "training.workers=2"]), tmp_path)
    for stage in ("align", "train"):
        with pytest.raises(NnitError, match="training.cpus asks for 1000 CPUs"):
            pipeline._check_cpus(stage)
    pipeline._check_cpus("report")  # can be written anywhere
