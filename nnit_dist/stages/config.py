"""The configuration of a run: one YAML file, validated before anything starts."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from nnit_dist.artifacts.legacy import advice
from nnit_dist.core.errors import NnitError, nearest
from nnit_dist.core.splits import TopologySplit, UnseenKind, split_topologies
from nnit_dist.core.task import DEFAULT_CONTROL_MODE, MOST_EPISODES, MOST_SEED, SimBackend
from nnit_dist.core.topology import MOST_DEPTH, MOST_WIDTH, Hidden
from nnit_dist.hypernet.config import AlignConfig
from nnit_dist.nnit.config import DEFAULT_STEPS, NNiTConfig
from nnit_dist.population.config import PopulationConfig
from nnit_dist.stages.keys import Key, keys_of
from nnit_dist.training.config import Placement


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TopologiesConfig(_Model):
    """The grid of training topologies, and the topologies that are kept unseen."""

    widths: list[Annotated[int, Field(gt=0, le=MOST_WIDTH // 2)]] = Field(
        [16, 32, 48, 64], min_length=1, description="Widths of hidden layers on the training grid."
    )
    depths: list[Annotated[int, Field(gt=0, le=MOST_DEPTH // 2)]] = Field(
        [1, 2, 3], min_length=1, description="Numbers of hidden layers on the training grid."
    )
    variation: int = Field(
        5,
        ge=0,
        description="In training, each hidden width is varied by up to so many units around the "
        "grid.",
    )
    unseen_widths: list[int] = Field(
        [24, 40, 56], description="Widths that no network of training has."
    )
    unseen: dict[UnseenKind, NonNegativeInt] = Field(
        {"combination": 12, "width": 12},
        description="How many topologies of each kind are held out of training.",
    )


class GenerateConfig(_Model):
    """Which networks NNiT writes at the end of a run."""

    samples: int = Field(
        2, gt=0, description="Networks written for each topology. All of them are counted."
    )
    seen_topologies: int = Field(
        12, ge=0, description="How many topologies of training are written for comparison."
    )
    unseen_topologies: dict[UnseenKind, NonNegativeInt] | None = Field(
        None, description="How many held-out topologies of each kind are written; all by default."
    )
    sampler_steps: int = Field(
        DEFAULT_STEPS, gt=0, description="Steps of the sampler from noise to a network."
    )
    guidance: float = Field(
        0.0, ge=0, description="Strength of classifier-free guidance; 0 means none."
    )
    studies: bool = Field(
        False,
        description="Also write networks that show the effect of sampler steps, of the success "
        "asked for, and architectures that the model draws itself.",
    )


class EvaluateConfig(_Model):
    """How the written networks are measured."""

    episodes: int = Field(
        20, gt=0, le=MOST_EPISODES, description="Episodes in which each network is measured."
    )


class LoggingConfig(_Model):
    """Where curves and figures are logged."""

    wandb: Literal["off", "offline", "online"] = Field(
        "off",
        description="Whether runs and searches log to Weights & Biases. `offline` writes files "
        "only.",
    )


class RayConfig(_Model):
    """Where the stages run."""

    address: str | None = Field(
        None,
        min_length=1,
        description="Address of a running Ray cluster; a local Ray is started by default.",
    )
    num_cpus: int | None = Field(
        None, gt=0, description="Logical CPUs of a local Ray; all cores by default."
    )
    actors: int | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Simulator processes of a pool; one for every CPU by default.",
    )
    sim_backend: SimBackend = Field(
        "auto", description="Where a pool simulates. `auto` takes a GPU where Ray has one."
    )


class RunConfig(_Model):
    """One run, from population to report."""

    name: str = Field(description="Name of the run. Its directory is runs/NAME by default.")
    tasks: list[str] = Field(min_length=1, description="Tasks of ManiSkill3.")
    continue_from: str | None = Field(
        None,
        description="Directory of a finished run to go on from. Its tasks come first, and new ones "
        "are added to its models.",
    )
    control_mode: str = Field(
        DEFAULT_CONTROL_MODE, description="Control mode of the robot, as ManiSkill3 names it."
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description="Seed of everything that is random.")
    topologies: TopologiesConfig = TopologiesConfig()
    population: PopulationConfig = PopulationConfig()
    align: AlignConfig = AlignConfig()
    nnit: NNiTConfig = NNiTConfig()
    training: Placement = Placement()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    logging: LoggingConfig = LoggingConfig()
    ray: RayConfig = RayConfig()

    def split(self, trained: Collection[Hidden] = ()) -> TopologySplit:
        """Split topologies into seen and unseen; those in `trained` are never unseen."""
        grid = self.topologies
        return split_topologies(
            grid.widths,
            grid.depths,
            unseen_widths=grid.unseen_widths,
            counts=grid.unseen,
            seed=self.seed,
            trained=trained,
        )


def known_keys(start: str = "") -> list[Key]:
    """All keys whose path begins with `start`, in order; raises NnitError if there are none."""
    keys = list(keys_of(RunConfig))
    matching = [key for key in keys if key.path.startswith(start)]
    if not matching:
        hint = nearest(start, [key.path for key in keys])
        raise NnitError(f"no key of a configuration begins with {start!r}.{hint}")
    return matching


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a key such as `nnit.lr`; raises NnitError if there is no such key."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NnitError(advice(key) or f"there is no key {key!r} in a configuration.")
        value = value[name]
    return value


def with_values(config: RunConfig, values: dict[str, Any], where: str) -> RunConfig:
    """A copy with other values, by key such as `nnit.lr`; error messages begin with `where`.

    Raises:
        NnitError: a key is unknown, or a value does not fit.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    for path, value in values.items():
        value_of(config, path)
        *parents, last = path.split(".")
        level = data
        for name in parents:
            level = level.setdefault(name, {})
        level[last] = value
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise NnitError(f"{where}: " + "; ".join(explain(e) for e in error.errors())) from None


def explain(error: Any) -> str:
    """What is wrong with a key, of an entry of pydantic's `ValidationError.errors()`."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    path = ".".join(location)
    if changed := advice(path):
        return changed
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {path!r}.{nearest(location[-1], _keys_at(location[:-1]))}"
    if error["type"] == "missing":
        return f"{path!r} is missing"
    return f"{path!r}: {error['msg'].removeprefix('Value error, ')}, got {_short(error['input'])}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        text = "a very large number"
    return text if len(text) <= 200 else f"{text[:200]}…"


def _keys_at(location: list[str]) -> list[str]:
    start = "".join(f"{name}." for name in location)
    below = [
        key.path.removeprefix(start) for key in keys_of(RunConfig) if key.path.startswith(start)
    ]
    return list(dict.fromkeys(path.split(".")[0] for path in below))
