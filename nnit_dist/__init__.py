"""nnit_dist: writes working neural networks for any MLP topology instead of training them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnit_dist.core.policy import Policy, load_policies, load_policy, save_policy
    from nnit_dist.nnit.model import load_model
    from nnit_dist.rollout.evaluation import Evaluation, Evaluator, evaluate

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "Evaluator",
    "Policy",
    "__version__",
    "evaluate",
    "load_model",
    "load_policies",
    "load_policy",
    "save_policy",
]
_HOMES = {
    "Evaluation": "nnit_dist.rollout.evaluation",
    "Evaluator": "nnit_dist.rollout.evaluation",
    "Policy": "nnit_dist.core.policy",
    "evaluate": "nnit_dist.rollout.evaluation",
    "load_model": "nnit_dist.nnit.model",
    "load_policies": "nnit_dist.core.policy",
    "load_policy": "nnit_dist.core.policy",
    "save_policy": "nnit_dist.core.policy",
}


def __getattr__(name: str) -> Any:
    """The public names, each loaded when it is asked for: a policy needs neither torch nor Ray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
