"""Records of a search: the files of its trials, trials as read from them, and final figures.

Their keys are those of the JSON files of a search, and of the data of its page.
"""

from typing import Any, Literal, NotRequired, TypedDict

from nnit_dist.search.config import Scheduler, Stage

Values = dict[str, Any]  # by configuration key; each key has its own type


class NetworkSuccess(TypedDict):
    """A network that judges a rung: its number of parameters and its success in [0, 1]."""

    policy: str
    parameters: int
    success: float


class RungRecord(TypedDict):
    """Result of a trial at a rung, `rung-K.json`.

    `loss` is None if it is not finite. `success` is the mean over the networks, in [0, 1].
    `seconds` has one entry per activity (start, train, write, measure). `parameters` is the
    number of parameters of the trained model.
    """

    rung: int
    step: int
    loss: float | None
    success: float
    networks: NotRequired[list[NetworkSuccess]]
    seconds: dict[str, float]
    parameters: int


class RungReport(RungRecord):
    """Report of a trial to Tune at a rung, without networks; `directory` is the trial's name."""

    directory: str


class TrialFile(TypedDict):
    """Description of a trial, `trial.json`.

    A trial may start with the weights of another, its `donor`; `inherited` is the number of rungs
    that it copied. Files of older searches call this `taken_over`.
    """

    values: Values
    donor: NotRequired[str]
    inherited: NotRequired[int]
    taken_over: NotRequired[int]


class TrialRecord(TypedDict):
    """A trial of a search, as read from its files.

    `state` is done (it has all rungs, or was `stopped` because others were better), failed, or
    open. `complete` says whether it has all rungs. `success` is that of the last rung, None before
    the first. `inherited` is the number of rungs that it copied from its `donor`.
    """

    name: str
    values: Values
    inherited: int
    donor: str | None
    state: Literal["done", "failed", "open"]
    stopped: bool
    complete: bool
    rungs: list[RungRecord]
    success: float | None


class Segment(TypedDict):
    """Part of a trial's training: its values, and the number of rungs after which it started."""

    after: int
    values: Values


class BestTrial(TypedDict):
    """The best trial that has all rungs; `schedule` lists its training segments in order."""

    name: str
    values: Values
    success: float
    schedule: list[Segment]


class RankCorrelation(TypedDict):
    """Spearman's rank correlation of loss and success over the trials of a rung."""

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
    """Success of the best trial and of the defaults on held-out topologies."""

    best: GroupSuccess
    defaults: GroupSuccess
    difference: MeanDifference


class SearchFigures(TypedDict):
    """Figures of a search: counts of its trials, the best trial, and how loss relates to success.

    `seconds` are summed over all trials, by activity. `loss_and_success` has one entry per rung,
    None if the correlation is undefined.
    """

    trials: int
    complete: int
    stopped: int
    failed: int
    best: BestTrial
    seconds: dict[str, float]
    loss_and_success: list[RankCorrelation | None]
    test: NotRequired[FinalFigures]


class SearchIdentity(TypedDict):
    """Fields that must be equal for a search to resume another.

    `distributions` are Optuna distributions as JSON. `config` is the configuration without the
    sections that only say where it runs. `judged` says how many networks and episodes judge a
    trial. `hypernetwork` is the hash of the hypernetwork that trials start from, if any.
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
    """Description of a search, `search.json`; the file also has its figures once it is over."""

    settings: dict[str, object]
    run: str
    defaults: Values


class PoolFigures(TypedDict):
    """Figures of the simulator pool of a search, `pool.json`.

    `busy` is the share of time in which it ran episodes, `waiting` the number of waiting jobs, and
    `driver` the share of time in which the process of the search was busy.
    """

    episodes: int
    episodes_per_second: float
    busy: float
    waiting: int
    simulators: int
    replaced: int
    failed_networks: int
    driver: NotRequired[float]
