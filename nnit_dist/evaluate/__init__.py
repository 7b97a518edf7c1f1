"""Measuring policies in ManiSkill3: `from nnit_dist.evaluate import evaluate`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnit_dist.evaluate.run import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]


def __getattr__(name: str) -> Any:
    """The public names, loaded when asked for: statistics need neither Ray nor ManiSkill."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnit_dist.evaluate import run

    return getattr(run, name)
