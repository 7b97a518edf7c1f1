"""The configuration of the population: which policies PPO trains, and how."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from nnit_dist.core.errors import NnitError
from nnit_dist.core.task import MOST_SEED
from nnit_dist.core.topology import (
    ACTIVATIONS,
    Activation,
    Hidden,
    architecture_name,
    hidden_from,
    parse_architecture,
)


def _checked(value: object) -> object:
    try:
        _parsed(value)
    except (NnitError, ValueError):
        raise ValueError(
            f"write an architecture as [64, 48] or 64x48-relu, with {', '.join(ACTIVATIONS)}"
        ) from None
    return value


def _parsed(value: object) -> tuple[Hidden, Activation]:
    """Hidden widths and activation; NnitError or ValueError if it is no architecture."""
    return parse_architecture(value) if isinstance(value, str) else (hidden_from(value), "tanh")


def _distinct(values: list[list[int] | str]) -> list[list[int] | str]:
    parsed = [_parsed(value) for value in values]
    if twice := [value for i, value in enumerate(values) if parsed[i] in parsed[:i]]:
        raise ValueError(f"the architecture {twice[0]} is there twice")
    return values


def _distinct_seeds(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is there twice")
    return seeds


Architectures = Annotated[
    list[Annotated[list[int] | str, BeforeValidator(_checked)]],
    Field(min_length=1),
    AfterValidator(_distinct),
]


class Recipe(BaseModel):
    """PPO settings of a task. The defaults differ from RLlib's, which do not suit ManiSkill3."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    env_steps: int = Field(400_000, gt=0, description="Budget of one trial, in env steps.")
    success_bar: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Success of the deterministic policy at which a trial stops.",
    )
    lr: float = Field(7e-4, gt=0, description="Learning rate of Adam at the start.")
    final_lr: float = Field(
        1e-4, gt=0, description="Learning rate at the end of the budget, reached linearly."
    )
    batch: int = Field(2048, gt=0, description="Env steps of an iteration of PPO.")
    minibatch: int = Field(
        256, gt=0, description="Env steps that an optimizer step is computed on."
    )
    epochs: int = Field(10, gt=0, description="Passes over the env steps of an iteration.")
    gamma: float = Field(0.8, ge=0, le=1, description="Discount factor of a step.")
    gae_lambda: float = Field(
        0.9, ge=0, le=1, description="Lambda of generalized advantage estimation."
    )
    clip: float = Field(
        0.2, gt=0, description="Clip range of the ratio of new to old action probability."
    )
    max_kl: float = Field(
        0.04,
        gt=0,
        description="KL divergence after which an iteration takes no further pass.",
    )
    grad_clip: float = Field(0.5, gt=0, description="Largest norm of a gradient.")
    entropy_coeff: float = Field(
        0.006, ge=0, description="Weight of the entropy bonus in the loss."
    )
    normalize_observations: bool = Field(
        True,
        description="Standardize observations by the mean and spread of all so far.",
    )
    envs: int = Field(16, gt=0, description="Environments that a trial steps together.")
    eval_every: int = Field(
        40_000,
        gt=0,
        description="Env steps between two measurements of the policy, each kept as a snapshot.",
    )
    eval_episodes: int = Field(50, gt=0, description="Episodes of each measurement.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch % self.envs:
            raise ValueError(f"batch={self.batch} is no multiple of envs={self.envs}")
        if self.minibatch > self.batch:
            raise ValueError(f"minibatch={self.minibatch} is more than batch={self.batch}")
        return self


# Measured recipes by task. Lifting and picking take longer than pushing.
RECIPES = {
    "LiftPegUpright-v1": Recipe(env_steps=1_000_000),
    "PickCube-v1": Recipe(env_steps=1_000_000),
}


class PopulationConfig(BaseModel):
    """Which policies are trained, and how."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    architectures: Architectures = Field(
        [[64, 64], [64, 48]],
        description="Hidden widths of the policies that are trained, as [64, 48] or, with an "
        "activation other than tanh, 64x48-relu (or -elu, -silu).",
    )
    architectures_by_task: dict[str, Architectures] = Field(
        {}, description="Architectures by task, in place of `architectures`."
    )
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, le=MOST_SEED)]], AfterValidator(_distinct_seeds)
    ] = Field([0], min_length=1, description="Seeds; every architecture is trained once from each.")
    max_failures: int = Field(3, ge=0, description="How often a trial that dies is tried again.")
    cpus: float = Field(
        1, gt=0, description="CPUs of a trial. Less than 1 lets trials share a core."
    )
    gpu: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of a GPU on which a trial simulates and learns; 0 uses the CPU.",
    )
    recipe: Recipe = Field(
        Recipe(),
        description="PPO settings of every task. What is left out comes from the measured "
        "recipe of the task, or is the default.",
    )
    recipes: dict[str, Recipe] = Field(
        {}, description="PPO settings by task that differ from `recipe`."
    )

    def architectures_of(self, task: str) -> list[tuple[Hidden, Activation]]:
        """Hidden widths and activations of the policies that are trained on a task."""
        return [_parsed(one) for one in self.architectures_by_task.get(task, self.architectures)]

    def recipe_of(self, task: str) -> Recipe:
        """The recipe of a task: settings from `recipes`, else `recipe`, else the measured one."""
        settings: dict[str, float] = {}
        for recipe in (RECIPES.get(task), self.recipe, self.recipes.get(task)):
            if recipe is not None:
                settings |= recipe.model_dump(include=recipe.model_fields_set)
        return Recipe.model_validate(settings)


@dataclass(frozen=True)
class TrialSpec:
    """What one trial trains: an actor of `hidden` widths and an activation, from `seed`."""

    task: str
    control_mode: str
    hidden: Hidden
    seed: int
    activation: Activation = "tanh"

    @property
    def id(self) -> str:
        """Its name: task, hidden widths, activation (unless tanh) and seed."""
        return f"{self.task}_{architecture_name(self.hidden, self.activation)}_s{self.seed}"
