"""Records of a search: what its trials write, what is read of them, and what they come to.

Their keys are those of the JSON files of a search, and of the data of its page.
"""

from typing import Any, Literal, NotRequired, TypedDict

from nnit_dist.search.config import Scheduler, Stage

Values = dict[str, Any]  # by configuration key, whatever type the key has


class NetworkSuccess(TypedDict):
    """A network that judges a rung: its parameters and its success over its episodes."""

    policy: str
    parameters: int
    success: float


class RungRecord(TypedDict):
    """What a trial came to at a rung, `rung-K.json`.

    `loss` is None where it is not finite, `success` the mean over the networks, `seconds` by what
    they were spent on (start, train, write, measure), `parameters` those of what is trained.
    """

    rung: int
    step: int
    loss: float | None
    success: float
    networks: NotRequired[list[NetworkSuccess]]
    seconds: dict[str, float]
    parameters: int


class RungReport(RungRecord):
    """What a trial reports to Tune at a rung, without its networks; `directory` is its name."""

    directory: str


class TrialFile(TypedDict):
    """What a trial is, `trial.json`.

    `inherited` is how many of its rungs are those of its `donor`, with whose weights it began.
    Searches of before have it as `taken_over`.
    """

    values: Values
    donor: NotRequired[str]
    inherited: NotRequired[int]
    taken_over: NotRequired[int]


class TrialRecord(TypedDict):
    """A trial of a search, as its files tell.

    `state` is done (all rungs, or `stopped` as worse than others), failed, or open; `whole` whether
    it has all rungs; `success` that of the last rung, None before the first; `inherited` how many
    rungs are those of its `donor`.
    """

    name: str
    values: Values
    inherited: int
    donor: str | None
    state: Literal["done", "failed", "open"]
    stopped: bool
    whole: bool
    rungs: list[RungRecord]
    success: float | None


class Segment(TypedDict):
    """By which values a trial was trained, and after how many rungs that began."""

    after: int
    values: Values


class BestTrial(TypedDict):
    """The best trial of all rungs; `schedule` are its segments of training, the first one first."""

    name: str
    values: Values
    success: float
    schedule: list[Segment]


class RankCorrelation(TypedDict):
    """Spearman's, of loss and success over the trials of a rung."""

    rank_correlation: float
    p: float
    trials: int


class GroupSuccess(TypedDict):
    """Mean success of networks over topologies, with a 95% interval."""

    success: float
    low: float
    high: float


class MeanDifference(TypedDict):
    """Difference of two groups' mean success, paired by topology, with a 95% interval."""

    mean: float
    low: float
    high: float


GroupName = Literal["best", "defaults"]


class FinalFigures(TypedDict, total=False):
    """The best trial beside the defaults on topologies that are kept for the test."""

    best: GroupSuccess
    defaults: GroupSuccess
    difference: MeanDifference


class SearchFigures(TypedDict):
    """What a search came to: its trials, counted; the best one; and how loss and success relate.

    `seconds` are those of all trials, by what for. `loss_and_success` has an entry a rung, None
    where it says nothing.
    """

    trials: int
    whole: int
    stopped: int
    failed: int
    best: BestTrial
    seconds: dict[str, float]
    loss_and_success: list[RankCorrelation | None]
    test: NotRequired[FinalFigures]


class SearchIdentity(TypedDict):
    """What makes two searches the same one.

    `distributions` are JSON of Optuna's, `config` the configuration without what only says where
    it runs, `judged` how many networks and episodes judge a trial, `hypernetwork` the hash of the
    one that trials begin with, if any.
    """

    distributions: dict[str, str]
    stage: Stage
    scheduler: Scheduler
    rungs: list[float]
    task: str
    config: dict[str, object]
    judged: dict[str, int]
    hypernetwork: str | None


class SearchDescription(SearchIdentity):
    """What a search is, `search.json`; beside it lie its figures once it is over."""

    settings: dict[str, object]
    run: str
    defaults: Values


class PoolFigures(TypedDict):
    """What the pool of a search has done, `pool.json`.

    `busy` is the share of time that it ran episodes, `waiting` how many jobs wait, and `driver` the
    share of time that the process of the search was busy.
    """

    episodes: int
    episodes_per_second: float
    busy: float
    waiting: int
    simulators: int
    replaced: int
    failed_networks: int
    driver: NotRequired[float]
