"""The `nnit zoo` commands: list, show, check, compact and export a population."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from nnit_dist.cli.options import PLACE, Debug, Overwrite
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import count, decimal, share_range
from nnit_dist.core.storage import beside
from nnit_dist.runtime.progress import console, quiet_libraries, styled

if TYPE_CHECKING:
    from nnit_dist.core.zoo import Zoo as ZooFiles

zoo_app = typer.Typer(help="Look into a population.", no_args_is_help=True)

Zoo = Annotated[
    Path,
    typer.Argument(**PLACE, help="a zoo, e.g. runs/quickstart/population/zoo"),
]


@zoo_app.command("ls")
def zoo_ls(path: Zoo, debug: Debug = False) -> None:
    """List the policies of a zoo."""
    from nnit_dist.core.topology import architecture_name, check_activation

    rows = _zoo(path).rows()
    of_tasks = sorted({(row["task"], row["control_mode"]) for row in rows})
    table = Table(
        *(Column("id", no_wrap=True), "network", "env steps", "once", "at end", "return"),
        title="; ".join(f"{task}, {mode}" for task, mode in of_tasks),
    )
    for row in rows:
        table.add_row(
            row["id"],
            architecture_name(tuple(row["hidden"]), check_activation(row["activation"])),
            count(row["env_steps"]),
            f"{row['success_once']:.2f}",
            f"{row['success_at_end']:.2f}",
            f"{row['return']:.1f}",
        )
    console.print(table)


@zoo_app.command("show")
def zoo_show(path: Zoo, policy_id: str, debug: Debug = False) -> None:
    """Show one policy of a zoo."""
    member = _zoo(path).get(policy_id)
    weights = member.policy.flat()
    for name, value in member.row().items():
        if name != "weights":
            console.print(f"{name:>15}  {value}")
    console.print(f"{'weights':>15}  {len(weights):,}, rms {float((weights**2).mean()) ** 0.5:.3f}")


@zoo_app.command("stats")
def zoo_stats(
    path: Zoo,
    out: Annotated[
        Path | None,
        typer.Option(**PLACE, help="for the pictures; ZOO-stats by default"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show how diverse a population is in architectures, success and behavior."""
    from nnit_dist.core.files import write_atomic
    from nnit_dist.population.diversity import picture, population_stats

    members, target = list(_zoo(path).members()), out or path.with_name(f"{path.name}-stats")
    for task in dict.fromkeys(member.policy.task for member in members):
        with quiet_libraries(beside(target, "stats.log")):
            stats = population_stats([m for m in members if m.policy.task == task])
        write_atomic(target / f"{task}.png", partial(picture(task, stats).savefig, dpi=110))
        console.print(
            f"{task}: {stats.members} snapshots of {stats.trials} trials, "
            f"{stats.architectures} architectures, {stats.seeds} seed{'s' * (stats.seeds > 1)}, "
            f"{count(stats.env_steps)} env steps"
        )
        least, *quartiles, most = stats.success
        console.print(
            f"  success_once {share_range(least, most, 2)}, quartiles "
            f"{', '.join(decimal(value, 2) for value in quartiles)}; the best of every "
            f"trial {stats.best_success:.3f} on average"
        )
        console.print(
            f"  difference of actions: {decimal(stats.between_trials, 3)} between the best of "
            f"trials, {decimal(stats.between_snapshots, 3)} between snapshots of one trial"
        )
    console.print(f"pictures in {target}")


@zoo_app.command("verify")
def zoo_verify(path: Zoo, debug: Debug = False) -> None:
    """Check every file and row of a zoo."""
    problems = _zoo(path).verify()
    for problem in problems:
        console.print(styled(("•", "red"), f" {problem}"))
    if problems:
        raise NnitError(f"{len(problems)} problems in {path}.")
    console.print(f"{path}: {len(_zoo(path).rows())} policies, no problems")


@zoo_app.command("compact")
def zoo_compact(path: Zoo, debug: Debug = False) -> None:
    """Merge the files of a zoo into one, which is faster to read; not while a run writes it.

    Afterwards, stages that have already read the zoo take it for a different one.
    """
    zoo = _zoo(path)
    files = len(zoo.files())
    console.print(f"{path}: {count(zoo.compact())} policies, in one file instead of {count(files)}")


@zoo_app.command("export")
def zoo_export(
    path: Zoo,
    out: Annotated[Path, typer.Option(**PLACE, help="directory for the policy files")],
    policy_id: Annotated[str | None, typer.Option("--id", help="one policy only")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write policies of a zoo as policy files."""
    from nnit_dist.core.policy import save_policies

    zoo = _zoo(path)
    members = [zoo.get(policy_id)] if policy_id else list(zoo.members())
    save_policies([member.policy for member in members], out, overwrite)
    console.print(f"wrote {len(members)} policies to {out}")


def _zoo(path: Path) -> "ZooFiles":
    from nnit_dist.core.zoo import Zoo

    zoo = Zoo(path)
    if not zoo.files():
        raise NnitError(f"{path} is no zoo: it holds no Parquet files.")
    return zoo
