"""`nnit tune`: search hyperparameters against measured success."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from nnit_dist.cli.options import PLACE, Debug
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import count, decimal, percent, points_interval
from nnit_dist.core.storage import beside, runs
from nnit_dist.runtime.progress import console, quiet_libraries
from nnit_dist.search.config import Scheduler, SearchConfig

if TYPE_CHECKING:
    from nnit_dist.search.records import FinalFigures, SearchFigures, TrialRecord
    from nnit_dist.search.run import Search

BEST = 5  # trials that are shown
DEFAULTS = SearchConfig()
UNITS = {"s": 1, "m": 60, "h": 3600}


def tune(
    space: Annotated[Path, typer.Argument(help="a module of domains, e.g. tuning/nnit.py")],
    config: Annotated[Path, typer.Argument(help="YAML configuration to search around")] = Path(
        "configs/quickstart.yaml"
    ),
    trials: Annotated[int, typer.Option(min=1, help="how many are tried")] = DEFAULTS.trials,
    budget: Annotated[str | None, typer.Option(help="wall time, e.g. 90m or 3h")] = None,
    run: Annotated[
        Path | None, typer.Option(**PLACE, help="finished run to begin with; runs/NAME by default")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(**PLACE, help="the search's directory; RUN/tune/SPACE by default"),
    ] = None,
    topologies: Annotated[
        int, typer.Option(min=1, help="of validation, that a trial is judged by")
    ] = DEFAULTS.topologies,
    episodes: Annotated[int, typer.Option(min=1, help="episodes a network")] = DEFAULTS.episodes,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="override a key of the configuration")
    ] = None,
    scheduler: Annotated[
        Scheduler,
        typer.Option(help="asha stops the worse trials, pbt has them take over the better ones"),
    ] = DEFAULTS.scheduler,
    debug: Debug = False,
) -> None:
    """Search hyperparameters for success on validation topologies; resumes if run again."""
    from nnit_dist.artifacts.run_directory import RunDirectory
    from nnit_dist.search.run import Search
    from nnit_dist.search.space import load_space
    from nnit_dist.stages.config_file import load_config

    loaded = load_config(config, set_)
    base = RunDirectory(run or runs() / loaded.name)
    searched = load_space(space, loaded)
    directory = out or base.path / "tune" / searched.name
    settings = SearchConfig(
        trials=trials,
        budget_s=seconds_of(budget),
        topologies=topologies,
        episodes=episodes,
        scheduler=scheduler,
    )
    search = Search(searched, loaded, base, directory, settings)
    with quiet_libraries(beside(directory, "logs") / "tune.log"):
        figures = search.go()
    _show(figures, search)


def dashboard(
    search: Annotated[
        Path, typer.Argument(**PLACE, help="a search, e.g. runs/quickstart/tune/nnit")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="on this machine alone")] = 8270,
    browser: Annotated[bool, typer.Option(help="open it in a browser")] = True,
    debug: Debug = False,
) -> None:
    """Serve the page of a search, live while it runs."""
    from nnit_dist.search.dashboard import serve

    serve(search, port, browser)


def seconds_of(text: str | None) -> float | None:
    """Seconds of a time such as `90m`; raises NnitError if the text is not a time."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or float(match[1]) == 0:
        raise NnitError(f"cannot read the time {text!r}; write it as 30s, 90m or 3h.")
    return float(match[1]) * UNITS[match[2]]


def _show(figures: "SearchFigures", search: "Search") -> None:
    from nnit_dist.core.files import read_json
    from nnit_dist.search.results import POOL, as_overrides, read_trials
    from nnit_dist.search.trial import trial_name

    trials = read_trials(search.out)
    default = trial_name(search.space.defaults(search.config))
    console.print(_best_trials(trials, default))
    begun = sum(not trial["inherited"] for trial in trials)
    left = f"{figures['stopped']} stopped early"
    if search.settings.scheduler == "pbt":
        left = f"{len(trials) - begun} times a worse one took over from a better"
    complete = f"{figures['complete']} complete"
    console.print(f"{begun} trials: {complete}, {left}, {figures['failed']} failed")
    console.print(_spent(figures["seconds"]))
    if (search.out / POOL).exists() and (driver := read_json(search.out / POOL).get("driver")):
        console.print(f"the search's own process was busy {driver:.0%} of the time")
    if correlation := figures["loss_and_success"][-1]:
        console.print(
            f"loss and success, rank correlation of {correlation['trials']} trials: "
            f"{correlation['rank_correlation']:+.2f} (p {correlation['p']:.2g})"
        )
    if final := figures.get("test"):
        console.print(f"on the topologies kept for the test: {_compared(final)}")
    for segment in figures["best"]["schedule"]:
        after = f", from rung {segment['after'] + 1}" if segment["after"] else ""
        console.print(f"best{after}: {as_overrides(segment['values'])}")
    console.print(f"search: {search.out}  (its page: nnit dashboard {search.out})")


def _best_trials(trials: "list[TrialRecord]", default: str) -> Table:
    """The best trials that ran every rung, and the trial of the defaults, named `default`."""
    from nnit_dist.search.results import last_success

    complete = [trial for trial in trials if trial["complete"]]
    complete.sort(key=last_success, reverse=True)
    table = Table(
        Column("trial", no_wrap=True), "success", "loss", "parameters", title="best trials"
    )
    for trial in complete[:BEST] + [t for t in complete[BEST:] if t["name"] == default]:
        last = trial["rungs"][-1]
        name = trial["name"] + (" (defaults)" if trial["name"] == default else "")
        loss = decimal(last["loss"], 4, missing="–")
        table.add_row(name, f"{last['success']:.3f}", loss, count(last["parameters"]))
    return table


def _spent(seconds: dict[str, float]) -> str:
    """How the trials spent their time, in a sentence."""
    named = {"start": "waiting for a place and starting"}
    total = sum(seconds.values())
    shares = ", ".join(
        f"{named.get(name, name)} {share / total:.0%}" for name, share in seconds.items()
    )
    return f"trials spent {total / 60:.0f} minutes: {shares}"


def _compared(final: "FinalFigures") -> str:
    """The best trial's success beside the defaults', and their difference."""
    groups = {"best": final.get("best"), "defaults": final.get("defaults")}
    parts = [f"{name} {percent(group['success'])}%" for name, group in groups.items() if group]
    if pair := final.get("difference"):
        parts.append(f"difference {points_interval(pair['mean'], pair['low'], pair['high'])}")
    return ", ".join(parts)
