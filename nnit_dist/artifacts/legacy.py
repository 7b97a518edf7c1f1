"""Former names of keys: the only place that knows them.

A configuration with a former key is refused with advice. Manifests and results of finished runs are
read with their keys renamed.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar

from nnit_dist.core.files import JsonObject

_RENAMED = {  # by section; `*` stands for any name
    "align": {"mix_loss": "max_average_drop"},
    "align.distill": {
        "meta_batch": "topologies_per_step",
        "latents": "networks_per_topology",
        "turns": "task_weights",
        "blended": "max_teachers_per_mix",
        "width_jitter": "condition_width_noise",
        "depth_jitter": "condition_depth_noise",
    },
    "nnit": {
        "topologies": "topologies_per_step",
        "networks": "networks_per_topology",
        "turns": "task_weights",
        "drop_rate": "condition_dropout",
        "time_mean": "logit_mean",
        "time_std": "logit_std",
        "width_jitter": "condition_width_noise",
        "depth_jitter": "condition_depth_noise",
    },
    "population.recipe": {"whiten": "normalize_observations"},
    "population.recipes.*": {"whiten": "normalize_observations"},
    "topologies.unseen": {"apart": "bottleneck"},
    "generate.unseen_topologies": {"apart": "bottleneck"},
}
_MOVED = {  # from `evaluate` to `generate`
    "samples",
    "sampler_steps",
    "guidance",
    "studies",
    "seen_topologies",
    "unseen_topologies",
}
_REMOVED = {"align.distill": {"smoothness_weight": "align.ghn.smoothness sets how maps begin"}}
KINDS = {"apart": "bottleneck"}  # of topologies, in rows of results
OLDER_FORMATS = {"nnit.ghn/5": "nnit.ghn/6", "nnit.model/4": "nnit.model/5"}
_MODEL_NAMES = {  # of tensors and of metadata in model files
    "blended": "max_teachers_per_mix",
    "whitening.mean": "token_normalizer.mean",
    "whitening.std": "token_normalizer.std",
}
T = TypeVar("T")


def advice(key: str) -> str | None:
    """What to write instead of a former key such as `nnit.time_mean`; None for other keys."""
    section, _, name = key.rpartition(".")
    for pattern, names in _RENAMED.items():
        if name in names and _matches(section, pattern):
            return f"{key!r} is called {f'{section}.{names[name]}'!r} now"
    if section == "evaluate" and name in _MOVED:
        return f"{key!r} is called {f'generate.{name}'!r} now"
    if name in _REMOVED.get(section, {}):
        return f"{key!r} is gone: {_REMOVED[section][name]}"
    return None


def upgrade_config(config: JsonObject) -> JsonObject:
    """A copy of the configuration in a manifest, with former keys renamed or removed."""
    config = copy.deepcopy(config)
    evaluate = config.get("evaluate", {})
    if moved := {name: evaluate.pop(name) for name in _MOVED & evaluate.keys()}:
        config["generate"] = config.get("generate", {}) | moved
    for pattern, names in _RENAMED.items():
        for section in _sections(config, pattern.split(".")):
            for old in names.keys() & section.keys():
                section[names[old]] = section.pop(old)
    for pattern, removed in _REMOVED.items():
        for section in _sections(config, pattern.split(".")):
            for name in removed.keys() & section.keys():
                del section[name]
    return config


def upgrade_model(
    tensors: dict[str, T], metadata: dict[str, str]
) -> tuple[dict[str, T], dict[str, str]]:
    """Tensors and metadata of a model file under today's names."""
    tensors = {_MODEL_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    metadata = {_MODEL_NAMES.get(name, name): value for name, value in metadata.items()}
    # NNiT's files did not say how widths were varied.
    return tensors, {"variation": "0"} | metadata


def _sections(config: JsonObject, path: list[str]) -> Iterator[JsonObject]:
    """The sections of a configuration at a path, whose names may be `*`."""
    if not path:
        yield config
        return
    names = list(config) if path[0] == "*" else [path[0]]
    for name in names:
        if isinstance(section := config.get(name), dict):
            yield from _sections(section, path[1:])


def _matches(section: str, pattern: str) -> bool:
    names, patterns = section.split("."), pattern.split(".")
    return len(names) == len(patterns) and all(
        pattern in ("*", name) for name, pattern in zip(names, patterns, strict=True)
    )
