"""The configuration of NNiT and of its training."""

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from nnit_dist.training.config import TaskWeights

# Four steps are enough for PushCube-v1 alone. The model of four tasks was measured with eight.
DEFAULT_STEPS = 8


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the transformer."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int = field(default=256, metadata={"description": "Width of a token's embedding."})
    depth: int = field(default=4, metadata={"description": "Number of transformer blocks."})
    heads: int = field(
        default=4, metadata={"description": "Attention heads of a block; they share the width."}
    )

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError("width, depth and heads are positive, and heads divide width")
        if self.width > 2**20 or self.depth > 1024:
            raise ValueError("width is at most 2**20, depth at most 1024")


class NNiTConfig(BaseModel):
    """The transformer and its training."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    patch: int = Field(8, gt=0, description="Side of a square patch of weights, which is a token.")
    transformer: TransformerConfig = TransformerConfig()
    steps: int = Field(2000, gt=0, description="Optimizer steps.")
    topologies_per_step: int = Field(
        8, gt=0, description="Topologies that a step trains on, over all workers."
    )
    networks_per_topology: int = Field(4, gt=0, description="Networks of each topology in a step.")
    reuse: int = Field(
        1,
        gt=0,
        description="How many steps use a network that the hypernetwork has written. More than one "
        "saves time where no loader processes write ahead.",
    )
    task_weights: TaskWeights = {}
    architectures: int = Field(
        32, ge=0, description="Architectures without weights that a step trains on beside networks."
    )
    accumulate: int = Field(
        1, gt=0, description="Parts in which a worker computes its share of a step, to save memory."
    )
    lr: float = Field(1e-3, gt=0, description="Learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    ema: float = Field(
        0.995, ge=0, lt=1, description="Decay of the exponential moving average of the weights."
    )
    mask_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of networks whose architecture tokens are masked in part.",
    )
    condition_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of examples without task and success. Guidance needs some.",
    )
    architecture_weight: float = Field(
        0.05, ge=0, description="Weight of the architecture tokens' loss beside that of the flow."
    )
    logit_mean: float = Field(
        0.0,
        description="Mean of the noise levels' logits in training. A larger one trains nearer to "
        "the data, a smaller one nearer to noise.",
    )
    logit_std: float = Field(
        1.0, ge=0, description="Standard deviation of the noise levels' logits in training."
    )
    condition_width_noise: float = Field(
        3.0,
        ge=0,
        description="Largest error, in units, of the widths that NNiT is conditioned on in "
        "training.",
    )
    condition_depth_noise: float = Field(
        1.0,
        ge=0,
        description="Largest error, in layers, of the depth that NNiT is conditioned on in "
        "training.",
    )
    best_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of networks that imitate trials' best snapshots; the others imitate "
        "earlier snapshots, if align.snapshots asks for some.",
    )
    bf16: bool = Field(
        True, description="Compute in bfloat16 where the device does so faster than in float32."
    )
    checkpoint_every: int = Field(100, gt=0, description="Steps between two checkpoints.")
