"""Records of an evaluation: the success of each network, and figures over many networks.

Their keys are those of the JSON and Parquet files that store them.
"""

from typing import Literal, NotRequired, TypedDict

from nnit_dist.core.topology import Hidden

# One network's success over its episodes, with a 95% Wilson interval. `hidden` are its
# hidden widths, `source` names what wrote it, and `return` is its mean return, None if unmeasured.
PolicyResult = TypedDict(
    "PolicyResult",
    {
        "policy_id": str,
        "fingerprint": str,
        "source": str,
        "hidden": list[int],
        "episodes": int,
        "success_once": float,
        "success_once_low": float,
        "success_once_high": float,
        "success_at_end": float,
        "return": float | None,
    },
)


class NetworkResult(PolicyResult):
    """A network's success, by the method that wrote it and the kind of its topology."""

    task: str
    method: str
    kind: str


class StudyResult(PolicyResult):
    """A network's success in a study of the sampler; `setting` is the value that varies."""

    study: str
    setting: str


class Summary(TypedDict):
    """Mean success of many networks, with a 95% interval over topologies, and their counts."""

    success_once: float
    low: float
    high: float
    success_at_end: float
    topologies: int
    networks: int
    episodes: int


class MethodSummary(Summary):
    """The summary of a method on a kind of topologies."""

    method: str
    kind: str


class StudySummary(Summary):
    """The summary of a study at one setting."""

    setting: str


class PairedDifference(TypedDict):
    """Difference of two methods' success over their common topologies, with a 95% interval."""

    difference: float
    low: float
    high: float
    topologies: int


StudyName = Literal["steps", "asked", "drawn"]
STUDIES: tuple[StudyName, ...] = ("steps", "asked", "drawn")


class Studies(TypedDict, total=False):
    """Summaries of each study, and Spearman's correlation of requested and measured success."""

    steps: list[StudySummary]
    asked: list[StudySummary]
    drawn: list[StudySummary]
    rank_correlation: float | None


class TaskFigures(TypedDict):
    """Figures of a run on one task; `failures` gives the reason for each policy id that failed.

    Runs of earlier versions do not say the control mode and the robot.
    """

    control_mode: NotRequired[str]
    robot: NotRequired[str]
    summaries: list[MethodSummary]
    failures: dict[str, str]
    paired: NotRequired[PairedDifference | None]
    studies: Studies


def task_title(task: str, figures: TaskFigures) -> str:
    """The task with its control mode and robot, as far as they are known."""
    return ", ".join(
        [
            task,
            *([figures["control_mode"]] if "control_mode" in figures else []),
            *([f"robot {figures['robot']}"] if "robot" in figures else []),
        ]
    )


def hidden_of(result: PolicyResult) -> Hidden:
    """The widths of a network's hidden layers."""
    return tuple(result["hidden"])
