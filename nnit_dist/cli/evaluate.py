"""`nnit evaluate` and `nnit compare`: measure policies, and compare what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from nnit_dist.cli.options import PLACE, Debug
from nnit_dist.core.formatting import share_interval, share_range
from nnit_dist.core.storage import beside, path_of
from nnit_dist.core.task import SimBackend, TaskInfo
from nnit_dist.runtime.progress import console, quiet_libraries, styled

if TYPE_CHECKING:
    from nnit_dist.rollout.results import PolicyResult


PARTLY = 3  # the exit code if some policies could not be measured


def evaluate(
    policies: Annotated[
        str, typer.Argument(help="policy files, a directory of them, a zoo, or module:function")
    ],
    episodes: Annotated[int, typer.Option(help="episodes a policy")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            **PLACE,
            help="where results are kept; POLICIES-evaluation by default",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="ManiSkill3 task of a function; policies name their own")
    ] = None,
    control_mode: Annotated[
        str | None, typer.Option(help="control mode of a function; pd_joint_delta_pos by default")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="simulator processes")] = None,
    returns: Annotated[bool, typer.Option("--returns", help="measure returns too")] = False,
    until_halfwidth: Annotated[
        float | None, typer.Option(help="stop a policy early, at a 95% interval of +- this")
    ] = None,
    videos: Annotated[
        bool, typer.Option("--videos", help="film the best, the median and the worst policy")
    ] = False,
    sim_backend: Annotated[SimBackend, typer.Option(help="auto: a GPU where Ray has one")] = "auto",
    address: Annotated[str | None, typer.Option(help="a running Ray cluster")] = None,
    debug: Debug = False,
) -> None:
    """Roll out policies in ManiSkill3; store and print their success."""
    from nnit_dist.core.files import write_json
    from nnit_dist.rollout.evaluable import read_evaluables
    from nnit_dist.rollout.evaluation import Evaluator
    from nnit_dist.rollout.summaries import summarize

    evaluables = read_evaluables(policies, task, control_mode)
    name = policies if "://" in policies else policies.replace(":", ".")
    target = out or path_of(f"{name.rstrip('/')}-evaluation")
    log = beside(target, "evaluate.log")
    with quiet_libraries(log):
        result = Evaluator(actors, sim_backend, address=address).evaluate(
            evaluables, episodes, target, returns=returns, until_halfwidth=until_halfwidth
        )
    rows = result.rows()
    summary = summarize(rows) if rows else None
    write_json(
        target / "results.json",
        {
            "task": result.info.name,
            "control_mode": result.info.control_mode,
            "robot": result.info.robot,
            "summary": summary,
            "policies": rows,
            "failures": result.failures,
        },
    )
    if summary:
        _print_policies(result.info, rows)
        success = share_interval(summary["success_once"], summary["low"], summary["high"])
        of_all = f" of {len(evaluables)}" * bool(result.failures)
        console.print(
            f"mean success_once {success}, {summary['networks']}{of_all} measured; results in "
            f"{target}"
        )
    if summary and until_halfwidth:
        note = _bias_note(summary["success_once"], episodes, until_halfwidth)
        console.print(styled((note, "dim")))
    if videos:
        from nnit_dist.report.film import film_extremes

        with quiet_libraries(log):
            written = film_extremes(result, target)
        console.print(f"filmed: {', '.join(map(str, written))}")
    print_failures(result.failures)
    if result.failures:
        raise typer.Exit(PARTLY if rows else 1)


def print_failures(failures: dict[str, str]) -> None:
    """A line for each policy that could not be measured, with the reason."""
    for policy_id, reason in failures.items():
        console.print(styled(("not measured:", "red"), f" {policy_id}: {reason}"))


def compare(
    first: Annotated[Path, typer.Argument(**PLACE, help="results of `nnit evaluate`")],
    second: Annotated[
        Path,
        typer.Argument(**PLACE, help="results that it is compared with"),
    ],
    debug: Debug = False,
) -> None:
    """Compare two evaluations over the same topologies and start states."""
    from nnit_dist.rollout.comparison import compare_evaluations

    console.print(compare_evaluations(first, second))


def _print_policies(info: TaskInfo, rows: "list[PolicyResult]") -> None:
    table = Table(
        *(Column("policy", no_wrap=True), "episodes", "success_once", "95%", "at end"),
        title=f"{info.name}, {info.control_mode}, robot {info.robot}",
    )
    with_returns = any(row["return"] is not None for row in rows)
    if with_returns:
        table.add_column("return")
    for row in rows:
        table.add_row(
            row["policy_id"],
            str(row["episodes"]),
            f"{row['success_once']:.2f}",
            share_range(row["success_once_low"], row["success_once_high"], 2),
            f"{row['success_at_end']:.2f}",
            *([f"{row['return']:.1f}"] if with_returns else []),
        )
    console.print(table)


def _bias_note(success: float, episodes: int, halfwidth: float) -> str:
    """A note on the bias of stopping early, at the measured success and in the worst case."""
    from nnit_dist.rollout.statistics import stopping_bias

    here, _ = stopping_bias(success, episodes, halfwidth)
    worst = max(abs(stopping_bias(p / 100, episodes, halfwidth)[0]) for p in range(1, 100))
    return (
        f"stopped early, which biases a policy's success: by {here:+.3f} at {success:.2f}, "
        f"nowhere by more than {worst:.3f}"
    )
