"""Results of a search, read from the files that its trials write."""

import json
import math
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from scipy.stats import spearmanr

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.search.records import (
    RankCorrelation,
    RungRecord,
    SearchFigures,
    Segment,
    TrialFile,
    TrialRecord,
    Values,
)

RUNGS = {  # by scheduler: shares of a trial's steps, after each of which it is measured
    "asha": (0.25, 0.5, 1.0),
    "pbt": tuple((k + 1) / 8 for k in range(8)),
}
SEARCH, POOL = "search.json", "pool.json"
TRIAL, STOPPED, ERROR = "trial.json", "stopped.json", "error.txt"
ENOUGH = 20  # trials for `importance`
GOOD = 0.25  # share of trials that count as good in `importance`


def rung_file(directory: Path, rung: int) -> Path:
    """File of a trial's result at a rung."""
    return directory / f"rung-{rung}.json"


def state_file(directory: Path, rung: int) -> Path:
    """File of the training state after a rung, from which training resumes."""
    return directory / f"rung-{rung}.pt"


def read_trials(out: Path) -> list[TrialRecord]:
    """Read every trial of the search in `out`, sorted by name."""
    if not (out / SEARCH).exists():
        return []
    count = len(read_json(out / SEARCH)["rungs"])
    return [_read_trial(file.parent, count) for file in sorted(out.glob(f"*/{TRIAL}"))]


def _read_trial(directory: Path, count: int) -> TrialRecord:
    """A trial of a search that has `count` rungs."""
    rungs: list[RungRecord] = []
    while len(rungs) < count and (path := rung_file(directory, len(rungs))).exists():
        rungs.append(read_json(path))
    trial: TrialFile = read_json(directory / TRIAL)
    stopped, complete = (directory / STOPPED).exists(), len(rungs) == count
    failed = (directory / ERROR).exists()
    return {
        "name": directory.name,
        "values": trial["values"],
        "inherited": trial.get("inherited", trial.get("taken_over", 0)),
        "donor": trial.get("donor"),
        "state": "done" if complete or stopped else "failed" if failed else "open",
        "stopped": stopped,
        "complete": complete,
        "rungs": rungs,
        "success": rungs[-1]["success"] if rungs else None,
    }


def last_success(trial: TrialRecord) -> float:
    """Success at the last rung that a trial has reached."""
    return trial["rungs"][-1]["success"]


def leading(trials: list[TrialRecord]) -> TrialRecord | None:
    """The most successful of the trials with the most rungs; None before any rung."""
    begun = [trial for trial in trials if trial["rungs"]]
    return max(begun, key=lambda trial: (len(trial["rungs"]), last_success(trial)), default=None)


def summarize_search(trials: list[TrialRecord]) -> SearchFigures:
    """Summarize a search: its best complete trial, and how well loss predicts success.

    Raises:
        NnitError: no trial has all rungs.
    """
    complete = [trial for trial in trials if trial["complete"]]
    if not complete:
        raise NnitError(
            "no trial of the search came through all its steps: give it more time, or see the "
            f"trials' {ERROR}."
        )
    best = max(complete, key=last_success)
    return {
        "trials": len(trials),
        "complete": len(complete),
        "stopped": sum(trial["stopped"] for trial in trials),
        "failed": sum(trial["state"] == "failed" for trial in trials),
        "best": {
            "name": best["name"],
            "values": best["values"],
            "success": last_success(best),
            "schedule": schedule(trials, best),
        },
        "seconds": seconds_of(trials),
        "loss_and_success": [_rank_correlation(trials, k) for k in range(len(best["rungs"]))],
    }


def schedule(trials: list[TrialRecord], trial: TrialRecord) -> list[Segment]:
    """Segments of a trial's training in order, those of its donors first."""
    by_name = {other["name"]: other for other in trials}
    segments: list[Segment] = []
    ancestor: TrialRecord | None = trial
    while ancestor:
        segments.append({"after": ancestor["inherited"], "values": ancestor["values"]})
        ancestor = by_name.get(ancestor["donor"]) if ancestor["donor"] else None
    return segments[::-1]


def seconds_of(trials: list[TrialRecord]) -> dict[str, float]:
    """Seconds that all trials spent, by activity (start, train, write, measure)."""
    spent: dict[str, float] = {}
    for rung in (rung for trial in trials for rung in trial["rungs"][trial["inherited"] :]):
        for name, seconds in rung["seconds"].items():
            spent[name] = spent.get(name, 0.0) + seconds
    return spent


def _rank_correlation(trials: list[TrialRecord], rung: int) -> RankCorrelation | None:
    """Spearman's rank correlation of loss and success at a rung; None if undefined."""
    trained = [trial for trial in trials if trial["inherited"] <= rung < len(trial["rungs"])]
    rows = [trial["rungs"][rung] for trial in trained]
    pairs = [(row["loss"], row["success"]) for row in rows if row["loss"] is not None]
    if len(pairs) < 3:
        return None
    result = spearmanr(*zip(*pairs, strict=True))
    if not math.isfinite(result.statistic):
        return None
    correlation, p = float(result.statistic), float(result.pvalue)
    return {"rank_correlation": correlation, "p": p, "trials": len(pairs)}


def importance(trials: list[TrialRecord], distributions: dict[str, str]) -> dict[str, float]:
    """Importance of each searched key for the success of a trial; the sum is 1.

    Computed by PED-ANOVA (arXiv 2304.10255) from success at the first rung of trials that
    inherited no rungs; the best quarter counts as good. Empty if there are fewer than `ENOUGH`
    such trials or all have the same success. `distributions` are Optuna distributions as JSON.
    """
    domains = {k: _hashable(json_to_distribution(v)) for k, v in distributions.items()}
    comparable = [trial for trial in trials if trial["rungs"] and not trial["inherited"]]
    first = [trial["rungs"][0]["success"] for trial in comparable]
    if len(comparable) < ENOUGH or len(set(first)) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={
                    key: json.dumps(chosen)
                    if isinstance(domains[key], CategoricalDistribution)
                    else chosen
                    for key, chosen in trial["values"].items()
                },
                distributions=domains,
                value=value,
            )
            for trial, value in zip(comparable, first, strict=True)
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _hashable(domain: BaseDistribution) -> BaseDistribution:
    """Encode choices as JSON, since Optuna's importance cannot handle lists."""
    if isinstance(domain, CategoricalDistribution):
        return CategoricalDistribution([json.dumps(choice) for choice in domain.choices])
    return domain


def as_overrides(values: Values) -> str:
    """Values as `--set` options of the command line."""
    return " ".join(f"--set {key}={json.dumps(value)}" for key, value in values.items())
