"""The configuration of a search: how much is tried, and how it is judged."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Scheduler = Literal["asha", "pbt"]
Stage = Literal["population", "align", "train"]


class SearchConfig(BaseModel):
    """How many trials a search runs, and how each is judged: by many networks, few episodes each.

    Some generated networks fail in all episodes, so a few networks could all be good by luck.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    trials: int = Field(24, gt=0)
    budget_s: float | None = Field(None, gt=0, description="wall time that trials have")
    topologies: int = Field(48, gt=0, description="of validation, that a trial is judged by")
    samples: int = Field(1, gt=0, description="networks a topology")
    episodes: int = Field(10, gt=0, description="episodes a network")
    seed: int = 0
    scheduler: Scheduler = "asha"
