"""`nnit tune`: search hyperparameters against measured success."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from nnit_dist.cli.options import PLACE, Debug
from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import beside, runs
from nnit_dist.runtime.progress import console, quiet_libraries

Scheduler = Literal["asha", "pbt"]
UNITS = {"s": 1, "m": 60, "h": 3600}


def tune(
    space: Annotated[Path, typer.Argument(help="a module of domains, e.g. tuning/nnit.py")],
    config: Annotated[Path, typer.Argument(help="YAML configuration to search around")] = Path(
        "configs/quickstart.yaml"
    ),
    trials: Annotated[int, typer.Option(min=1, help="how many are tried")] = 24,
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
    ] = 48,
    episodes: Annotated[int, typer.Option(min=1, help="episodes a network")] = 10,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="override a key of the configuration")
    ] = None,
    scheduler: Annotated[
        Scheduler,
        typer.Option(help="asha stops the worse trials, pbt has them take over the better ones"),
    ] = "asha",
    debug: Debug = False,
) -> None:
    """Search hyperparameters against success on topologies of validation; resumes."""
    from nnit_dist.artifacts.run_directory import RunDirectory
    from nnit_dist.search.run import Search, SearchConfig
    from nnit_dist.search.space import load_space
    from nnit_dist.stages.config import load_config

    loaded = load_config(config, set_)
    base = RunDirectory(run or runs() / loaded.name)
    what = load_space(space, loaded)
    place = out or base.path / "tune" / what.name
    settings = SearchConfig(
        trials=trials,
        budget_s=seconds_of(budget),
        topologies=topologies,
        episodes=episodes,
        scheduler=scheduler,
    )
    search = Search(what, loaded, base, place, settings)
    with quiet_libraries(beside(place, "logs") / "tune.log"):
        figures = search.go()
    _show(figures, search)


def dashboard(
    search: Annotated[
        Path, typer.Argument(**PLACE, help="a search, e.g. runs/quickstart/tune/nnit")
    ],
    port: Annotated[int, typer.Option(help="on this machine alone")] = 8270,
    browser: Annotated[bool, typer.Option(help="open it in a browser")] = True,
    debug: Debug = False,
) -> None:
    """The page of a search, live while it runs."""
    from nnit_dist.search.dashboard import serve

    serve(search, port, browser)


def seconds_of(text: str | None) -> float | None:
    """`90m` -> 5400; NnitError if it is no time."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or float(found[1]) == 0:
        raise NnitError(f"cannot read the time {text!r}; write it as 30s, 90m or 3h.")
    return float(found[1]) * UNITS[found[2]]


def _show(figures: dict[str, Any], search: Any) -> None:
    from nnit_dist.core.files import read_json
    from nnit_dist.search.results import POOL, as_overrides, read_trials
    from nnit_dist.search.trial import trial_name

    default = trial_name(search.space.defaults(search.config))
    trials = read_trials(search.out)
    whole = [trial for trial in trials if trial["whole"]]
    whole.sort(key=lambda trial: -trial["success"])
    table = Table(
        Column("trial", no_wrap=True), "success", "loss", "parameters", title="best trials"
    )
    for trial in whole[:5] + [t for t in whole[5:] if t["name"] == default]:
        last = trial["rungs"][-1]
        name = trial["name"] + (" (defaults)" if trial["name"] == default else "")
        loss = "–" if last["loss"] is None else f"{last['loss']:.4f}"
        table.add_row(name, f"{last['success']:.3f}", loss, f"{last['parameters']:,}")
    console.print(table)
    begun = sum(not trial["taken_over"] for trial in trials)
    left = f"{figures['stopped']} stopped early"
    if search.settings.scheduler == "pbt":
        left = f"{len(trials) - begun} times a worse one took over from a better"
    console.print(f"{begun} trials: {figures['whole']} whole, {left}, {figures['failed']} failed")
    spent = figures["seconds"]
    named = {"start": "waiting for a place and starting"}
    shares = ", ".join(
        f"{named.get(name, name)} {share / sum(spent.values()):.0%}"
        for name, share in spent.items()
    )
    console.print(f"trials spent {sum(spent.values()) / 60:.0f} minutes: {shares}")
    if (search.out / POOL).exists() and (driver := read_json(search.out / POOL).get("driver")):
        console.print(f"the search's own process was busy {driver:.0%} of the time")
    if found := figures["loss_and_success"][-1]:
        console.print(
            f"loss and success, rank correlation of {found['trials']} trials: "
            f"{found['rank_correlation']:+.2f} (p {found['p']:.2g})"
        )
    if test := figures["test"]:
        said = ", ".join(
            f"{name} {100 * test[name]['success']:.1f}%"
            for name in ("best", "defaults")
            if name in test
        )
        if "difference" in test:
            apart, low, high = (100 * test["difference"][key] for key in ("mean", "low", "high"))
            said += f", difference {apart:+.1f} points [{low:+.1f}, {high:+.1f}]"
        console.print(f"on the topologies kept for the test: {said}")
    for segment in figures["best"]["schedule"]:
        after = f", from rung {segment['after'] + 1}" if segment["after"] else ""
        console.print(f"best{after}: {as_overrides(segment['values'])}")
    console.print(f"search: {search.out}  (its page: nnit dashboard {search.out})")
