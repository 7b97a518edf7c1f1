"""What a search has come to: read from the files that its trials write."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from scipy.stats import spearmanr

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json

RUNGS = {  # by scheduler: shares of a trial's steps, after each of which it is measured
    "asha": (0.25, 0.5, 1.0),
    "pbt": tuple((k + 1) / 8 for k in range(8)),
}
SEARCH, POOL = "search.json", "pool.json"
TRIAL, STOPPED, ERROR = "trial.json", "stopped.json", "error.txt"
ENOUGH = 20  # trials to say which values matter
GOOD = 0.25  # share of trials that count as good there


def rung_file(directory: Path, rung: int) -> Path:
    """Where a trial keeps what a rung came to."""
    return directory / f"rung-{rung}.json"


def state_file(directory: Path, rung: int) -> Path:
    """Where a trial keeps what its training goes on from."""
    return directory / f"rung-{rung}.pt"


def read_trials(out: Path) -> list[dict[str, Any]]:
    """Every trial of a search: its values, rungs and state, by name.

    `state` is done (all rungs, or `stopped` as worse than others), failed, or open; `success` that
    of the last rung, None before the first; `taken_over` how many rungs are those of another, the
    `donor`, with whose weights it began.
    """
    if not (out / SEARCH).exists():
        return []
    count, trials = len(read_json(out / SEARCH)["rungs"]), []
    for file in sorted(out.glob(f"*/{TRIAL}")):
        rungs: list[dict[str, Any]] = []
        while len(rungs) < count and (path := rung_file(file.parent, len(rungs))).exists():
            rungs.append(read_json(path))
        stopped = (file.parent / STOPPED).exists()
        whole = len(rungs) == count
        failed, about = (file.parent / ERROR).exists(), read_json(file)
        trials.append(
            {
                "name": file.parent.name,
                "values": about["values"],
                "taken_over": about.get("taken_over", 0),
                "donor": about.get("donor"),
                "state": "done" if whole or stopped else "failed" if failed else "open",
                "stopped": stopped,
                "whole": whole,
                "rungs": rungs,
                "success": rungs[-1]["success"] if rungs else None,
            }
        )
    return trials


def leading(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial that came furthest, and of those the most successful; None before any rung."""
    ranked = [(len(trial["rungs"]), trial["success"], trial) for trial in trials if trial["rungs"]]
    return max(ranked, key=lambda row: row[:2])[2] if ranked else None


def summarize_search(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What a search found: the best trial of all rungs, and how well loss foretells success.

    Raises:
        NnitError: no trial came through.
    """
    whole = [trial for trial in trials if trial["whole"]]
    if not whole:
        raise NnitError(
            "no trial of the search came through all its steps: give it more time, or see the "
            f"trials' {ERROR}."
        )
    best = max(whole, key=lambda trial: trial["success"])
    return {
        "trials": len(trials),
        "whole": len(whole),
        "stopped": sum(trial["stopped"] for trial in trials),
        "failed": sum(trial["state"] == "failed" for trial in trials),
        "best": {key: best[key] for key in ("name", "values", "success")}
        | {"schedule": schedule(trials, best)},
        "seconds": seconds_of(trials),
        "loss_and_success": [_rank_correlation(trials, k) for k in range(len(best["rungs"]))],
    }


def schedule(trials: list[dict[str, Any]], trial: dict[str, Any]) -> list[dict[str, Any]]:
    """By which values what became a trial was trained: those of each leg, after how many rungs."""
    named, segments = {other["name"]: other for other in trials}, []
    while trial:
        segments.append({"after": trial["taken_over"], "values": trial["values"]})
        trial = named.get(trial["donor"], {})
    return segments[::-1]


def seconds_of(trials: list[dict[str, Any]]) -> dict[str, float]:
    """What trials spent, by what for."""
    spent: dict[str, float] = {}
    for rung in (rung for trial in trials for rung in trial["rungs"][trial["taken_over"] :]):
        for name, seconds in rung["seconds"].items():
            spent[name] = spent.get(name, 0.0) + seconds
    return spent


def _rank_correlation(trials: list[dict[str, Any]], rung: int) -> dict[str, float] | None:
    """Spearman's, of loss and success at a rung; None where it says nothing."""
    own = [trial for trial in trials if trial["taken_over"] <= rung < len(trial["rungs"])]
    rows = [trial["rungs"][rung] for trial in own]
    pairs = [(row["loss"], row["success"]) for row in rows if row["loss"] is not None]
    if len(pairs) < 3:
        return None
    found = spearmanr(*zip(*pairs, strict=True))
    if not math.isfinite(found.statistic):
        return None
    correlation, p = float(found.statistic), float(found.pvalue)
    return {"rank_correlation": correlation, "p": p, "trials": len(pairs)}


def importance(trials: list[dict[str, Any]], distributions: dict[str, str]) -> dict[str, float]:
    """How much each searched value decides whether a trial is a good one, adding up to 1.

    PED-ANOVA (arXiv 2304.10255) on success at the first rung, which all trials have that took
    nothing over; the best quarter is good. Nothing is said of few trials. `distributions` are JSON
    of Optuna's.
    """
    domains = {k: _hashable(json_to_distribution(v)) for k, v in distributions.items()}
    known = [trial for trial in trials if trial["rungs"] and not trial["taken_over"]]
    first = [trial["rungs"][0]["success"] for trial in known]
    if len(known) < ENOUGH or len(set(first)) < 2:
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
            for trial, value in zip(known, first, strict=True)
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _hashable(domain: BaseDistribution) -> BaseDistribution:
    """Choices as JSON, since lists are none for Optuna's importance."""
    if isinstance(domain, CategoricalDistribution):
        return CategoricalDistribution([json.dumps(choice) for choice in domain.choices])
    return domain


def as_overrides(values: dict[str, Any]) -> str:
    """Values as the command line takes them."""
    return " ".join(f"--set {key}={json.dumps(value)}" for key, value in values.items())
