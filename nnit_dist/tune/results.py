"""What a search has come to: read from the files that its trials write."""

import json
from pathlib import Path
from typing import Any

import optuna
from scipy.stats import spearmanr

from nnit_dist.artifacts import read_json
from nnit_dist.errors import NnitError

RUNGS = (0.25, 0.5, 1.0)  # of a trial's steps
SEARCH, POOL = "search.json", "pool.json"
TRIAL, STOPPED, ERROR = "trial.json", "stopped.json", "error.txt"


def rung_file(directory: Path, rung: int) -> Path:
    """Where a trial keeps what a rung came to."""
    return directory / f"rung-{rung}.json"


def read_trials(out: Path) -> list[dict[str, Any]]:
    """Every trial of a search: its values, rungs, and whether it is done, by name.

    `state` is done (all rungs, or stopped as worse than others), failed, or open.
    """
    trials = []
    for file in sorted(out.glob(f"*/{TRIAL}")):
        rungs: list[dict[str, Any]] = []
        while (path := rung_file(file.parent, len(rungs))).exists():
            rungs.append(read_json(path))
        stopped = (file.parent / STOPPED).exists()
        failed = (file.parent / ERROR).exists()
        done = stopped or len(rungs) == len(RUNGS)
        trials.append(
            {
                "name": file.parent.name,
                "values": read_json(file)["values"],
                "state": "done" if done else "failed" if failed else "open",
                "stopped": stopped,
                "rungs": rungs,
                "success": rungs[-1]["success"] if rungs else None,
            }
        )
    return trials


def summarise(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What a search found: the best trial of all rungs, and how well loss foretells success.

    Raises:
        NnitError: no trial came through.
    """
    whole = [trial for trial in trials if len(trial["rungs"]) == len(RUNGS)]
    if not whole:
        raise NnitError("no trial of the search came through; see the trials' error.txt.")
    best = max(whole, key=lambda trial: trial["success"])
    return {
        "trials": len(trials),
        "whole": len(whole),
        "stopped": sum(trial["stopped"] for trial in trials),
        "failed": sum(trial["state"] == "failed" for trial in trials),
        "best": {key: best[key] for key in ("name", "values", "success")},
        "loss_and_success": [_rank_correlation(trials, rung) for rung in range(len(RUNGS))],
    }


def _rank_correlation(trials: list[dict[str, Any]], rung: int) -> dict[str, float] | None:
    """Spearman's, of loss and success at a rung; None of fewer than three trials."""
    pairs = [
        (trial["rungs"][rung]["loss"], trial["rungs"][rung]["success"])
        for trial in trials
        if len(trial["rungs"]) > rung
    ]
    if len(pairs) < 3:
        return None
    found = spearmanr(*zip(*pairs, strict=True))
    return {
        "rank_correlation": float(found.statistic),
        "p": float(found.pvalue),
        "trials": len(pairs),
    }


def importance(trials: list[dict[str, Any]], distributions: dict[str, str]) -> dict[str, float]:
    """Share of the variance of success that each searched value explains, by PED-ANOVA.

    `distributions` as `optuna` writes them; nothing is said of fewer than eight trials.
    """
    domains = {k: optuna.distributions.json_to_distribution(v) for k, v in distributions.items()}
    known = [trial for trial in trials if trial["rungs"]]
    if len(known) < 8 or len({trial["success"] for trial in known}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial["values"], distributions=domains, value=trial["success"]
            )
            for trial in known
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def as_overrides(values: dict[str, Any]) -> str:
    """Values as the command line takes them."""
    return " ".join(f"--set {key}={json.dumps(value)}" for key, value in values.items())
