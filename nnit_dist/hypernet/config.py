"""The configuration of the hypernetwork and of its training."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from nnit_dist.training.config import TaskWeights


class GHNConfig(BaseModel):
    """Size of the hypernetwork."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    latent_dim: int = Field(
        8, gt=0, description="Dimensions of the latent that stands for a teacher."
    )
    embed_dim: int = Field(
        96, gt=0, description="Width of the embedding that each layer of a network gets."
    )
    decoder: Literal["spatial", "pointwise", "mlp"] = Field(
        "spatial",
        description="How weights are decoded from an embedding. `pointwise` and `mlp` are for "
        "comparison.",
    )
    channels: list[PositiveInt] = Field(
        [96, 64, 48, 32],
        min_length=1,
        max_length=16,
        description="Channels of the decoder's convolutions, from the coarsest scale up.",
    )
    smoothness: float = Field(
        3.0,
        gt=0,
        le=256,
        description="Correlation length, in weights, of the positional maps before training.",
    )


class DistillConfig(BaseModel):
    """How the hypernetwork is trained to act as the teachers do."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    steps: int = Field(4000, gt=0, description="Optimizer steps, over all rounds together.")
    dagger_rounds: int = Field(
        3,
        ge=0,
        description="Rounds of DAgger: generated networks are rolled out, and training goes on "
        "with the states that they visited.",
    )
    teacher_episodes: int = Field(
        40, gt=0, description="Episodes of each teacher that are recorded to learn from."
    )
    dagger_networks: int = Field(
        24, gt=0, description="Generated networks that a round of DAgger rolls out."
    )
    dagger_episodes: int = Field(4, gt=0, description="Episodes of each of these networks.")
    topologies_per_step: int = Field(
        8, gt=0, description="Topologies that a step trains on, over all workers."
    )
    task_weights: TaskWeights = {}
    networks_per_topology: int = Field(
        2, gt=0, description="Networks of each topology in a step, each with its own latent."
    )
    best_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of networks that imitate trials' best snapshots; the others imitate "
        "earlier snapshots, if align.snapshots asks for some.",
    )
    max_teachers_per_mix: int = Field(
        4,
        gt=0,
        description="A network imitates a random mix of at most so many best snapshots.",
    )
    states: int = Field(
        256, gt=0, description="States on which each network is compared with its teachers."
    )
    lr: float = Field(2e-3, gt=0, description="Learning rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW.")
    weight_noise: float = Field(
        0.05,
        ge=0,
        description="Gaussian noise on generated weights in training, relative to their rms. It "
        "makes small errors of a generator cost less.",
    )
    condition_width_noise: float = Field(
        3.0,
        ge=0,
        description="Largest error, in units, of the widths that the hypernetwork is conditioned "
        "on in training.",
    )
    condition_depth_noise: float = Field(
        1.0,
        ge=0,
        description="Largest error, in layers, of the depth that the hypernetwork is conditioned "
        "on in training.",
    )
    kl_weight: float = Field(
        1e-4, ge=0, description="Weight of the latents' KL divergence from N(0, 1) in the loss."
    )
    checkpoint_every: int = Field(250, gt=0, description="Steps between two checkpoints.")


class AlignConfig(BaseModel):
    """The alignment stage: who teaches the hypernetwork, and how it is trained."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    min_success: float = Field(
        0.9,
        ge=0,
        le=1,
        description="A trial teaches only if its best snapshot succeeds at least this often.",
    )
    snapshots: int = Field(
        0,
        ge=0,
        strict=True,
        description="How many earlier snapshots of each teaching trial teach as well, evenly over "
        "its training. With some, NNiT can be asked for a lower success.",
    )
    success_episodes: int = Field(
        100,
        gt=0,
        description="Episodes that measure each average of two teachers, and at the end each "
        "network that imitates a teacher.",
    )
    max_average_drop: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Two teachers are of one behavior mode if acting as their average costs at "
        "most this much success. The largest mode of a task teaches.",
    )
    ghn: GHNConfig = GHNConfig()
    distill: DistillConfig = DistillConfig()
