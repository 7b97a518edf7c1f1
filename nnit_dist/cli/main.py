"""The `nnit` command: parses arguments, runs the work and prints one line for an error."""

import io
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from nnit_dist import __version__
from nnit_dist.cli.bench import bench_app
from nnit_dist.cli.evaluate import PARTLY, compare, evaluate, print_failures
from nnit_dist.cli.options import PLACE, Debug, Overwrite, Seed
from nnit_dist.cli.search import dashboard, tune
from nnit_dist.cli.zoo import zoo_app
from nnit_dist.core.errors import NnitError
from nnit_dist.core.formatting import percent, percent_range
from nnit_dist.core.storage import runs
from nnit_dist.nnit.config import DEFAULT_STEPS
from nnit_dist.runtime.interrupts import GOES_ON, handle_interrupts, interrupt_code
from nnit_dist.runtime.progress import StageProgress, console, styled

if TYPE_CHECKING:
    from nnit_dist.stages.pipeline import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo_app, name="zoo")
app.add_typer(bench_app, name="bench")

Config = Annotated[Path, typer.Argument(help="YAML configuration, e.g. configs/quickstart.yaml")]
Out = Annotated[
    Path | None,
    typer.Option(**PLACE, help="run directory; runs/NAME by default"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, e.g. --set nnit.steps=500")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"nnit_dist {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    """Writes working robot policies for any MLP topology instead of training them."""


def main() -> None:
    """Run the command line; an expected error prints one message and exits with code 1."""
    if "--debug" not in sys.argv:
        warnings.simplefilter("ignore")  # those of Ray and SAPIEN do not help a user
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in an ASCII locale, ✓ becomes ?
            stream.reconfigure(errors="replace")
    handle_interrupts(enable=True)
    try:
        app(standalone_mode=True)
    except NnitError as error:
        _end_if_interrupted()
        if "--debug" in sys.argv:
            traceback.print_exc()
        console.print(styled(("error:", "bold red"), f" {error}"))
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit):
        _end_if_interrupted()
        raise
    except Exception as error:
        _end_if_interrupted()
        if "--debug" in sys.argv:
            raise
        console.print(_unforeseen(error))
        sys.exit(1)


def _unforeseen(error: Exception) -> Text:
    """A line on an error of the system, such as a full disk, or on a mistake of this program."""
    if isinstance(error, OSError | MemoryError):
        what = getattr(error, "strerror", None) or str(error) or "out of memory"
        file = getattr(error, "filename", None)
        name = f"{str(file)[:200]}: " if file else ""
        return styled(("error:", "bold red"), f" {name}{what}. --debug shows where.")
    words = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    advice = "This is a mistake of nnit_dist. Please report it with what --debug shows."
    return styled(("unexpected error:", "bold red"), f" {words}. {advice}")


def _end_if_interrupted() -> None:
    """Whatever the interrupt has become on its way here."""
    if code := interrupt_code():
        console.print(f"\n{GOES_ON}")
        sys.exit(code)


@app.command()
def run(config: Config, out: Out = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Run the whole chain: population, align, train, generate, evaluate, report."""
    pipeline = _load(config, out, set_)
    pipeline.do_all()
    _summary(pipeline)


@app.command()
def submit(
    config: Config,
    address: Annotated[
        str,
        typer.Option(help="the cluster's dashboard; `ray dashboard CLUSTER.yaml` tunnels to it"),
    ] = "http://127.0.0.1:8265",
    out: Out = None,
    set_: Overrides = None,
    wait: Annotated[bool, typer.Option(help="print the job's log until it ends")] = True,
    debug: Debug = False,
) -> None:
    """Run the whole chain as a job on a Ray cluster; the same command again resumes it."""
    from nnit_dist.cli.submit import submit as submit_job

    sys.exit(submit_job(config, address, out, set_, wait=wait))


def _stage_command(name: str, text: str) -> None:
    def command(
        config: Config, out: Out = None, set_: Overrides = None, debug: Debug = False
    ) -> None:
        _load(config, out, set_).do(name)

    app.command(name, help=text)(command)


_stage_command("population", "Train the population with RLlib; fills the zoo.")
_stage_command("align", "Distill the population into one aligned hypernetwork.")
_stage_command("train", "Train NNiT, the diffusion transformer over weights.")
_stage_command("report", "Write the report of a finished run.")


@app.command()
def generate(
    out: Annotated[Path, typer.Option(**PLACE, help="directory for the policy files")] = Path(
        "policies"
    ),
    task: Annotated[str, typer.Option(help="ManiSkill3 task")] = "PushCube-v1",
    hidden: Annotated[str | None, typer.Option(help="hidden widths, e.g. 40x56")] = None,
    samples: Annotated[int, typer.Option(min=1, max=1_000_000)] = 1,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="sampler steps")] = DEFAULT_STEPS,
    success: Annotated[
        float | None, typer.Option(help="success to ask for, 0 to 1; the best by default")
    ] = None,
    guidance: Annotated[
        float, typer.Option(help="how far to go beyond what is asked for; 0 is none")
    ] = 0.0,
    model: Annotated[
        Path | None,
        typer.Option(
            **PLACE,
            help="trained model, or a run directory; shipped one by default",
        ),
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write policy files for a topology, or for architectures that the model draws itself."""
    from nnit_dist.core.topology import parse_hidden
    from nnit_dist.nnit.model import load_model
    from nnit_dist.stages.generate import Sampler, Written, draw_topologies, generate_policies

    nnit, sampler = load_model(task, model), Sampler(steps, success, guidance)
    widths = nnit.distribution.seen[0] if hidden is None else parse_hidden(hidden)
    nnit.check(widths, success, guidance)
    write = partial(generate_policies, nnit, out=out, sampler=sampler, overwrite=overwrite)
    if hidden is not None:
        written = write([widths], samples, seed=seed)
    else:
        written = Written()
        for i, drawn in enumerate(draw_topologies(nnit, samples, seed, success)):
            written += write([drawn], 1, seed=seed + i)
    console.print(
        f"wrote {written.networks} policies to {out} ({written.milliseconds_a_network} ms each)"
    )


@app.command()
def refine(
    policies: Annotated[Path, typer.Argument(**PLACE, help="policy files of one task")],
    out: Annotated[Path | None, typer.Option(**PLACE, help="POLICIES-refined by default")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            **PLACE, help="finished run, whose teachers teach; the shipped one by default"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="of gradient descent; 2,000 by default")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train written policies by imitation: about a second each, without a simulator."""
    from nnit_dist.artifacts.run_directory import RunDirectory
    from nnit_dist.artifacts.shipped import shipped
    from nnit_dist.core.policy import load_policies, save_policies
    from nnit_dist.transfer.refine import STEPS, load_distillation_data
    from nnit_dist.transfer.refine import refine as improve

    written = load_policies(policies)
    subjects = sorted({(policy.task, policy.control_mode) for policy in written})
    if len(subjects) > 1:
        raise NnitError(
            f"{policies} has policies of {'; '.join(map(', '.join, subjects))}; refine those of "
            "one at a time."
        )
    task, control_mode = subjects[0]
    distillation_data = load_distillation_data(
        RunDirectory(run) if run else shipped(task), task, control_mode
    )
    # Beside the directory of the policies, where nothing takes it for more of them.
    directory = (policies.parent if policies.is_file() else policies).absolute()
    target, began = out or directory.with_name(f"{directory.name}-refined"), time.perf_counter()
    with StageProgress("policies") as view:
        view.add("refine", total=len(written))
        refined, errors = improve(
            written,
            distillation_data,
            steps or STEPS,
            seed,
            watch=lambda done: view.update("refine", done),
        )
    save_policies(refined, target, overwrite)
    before, after = (sum(column) / len(errors) for column in zip(*errors, strict=True))
    console.print(
        f"wrote {len(refined)} polic{'y' if len(refined) == 1 else 'ies'} to {target} "
        f"({(time.perf_counter() - began) / len(refined):.1f} s each). Mean squared error of "
        f"actions, on states that were not learnt from: {before:.4f} before, {after:.4f} after"
    )


for command in (evaluate, compare, tune, dashboard):
    app.command()(command)


@app.command()
def keys(
    start: Annotated[str, typer.Argument(help="how they begin, e.g. nnit. or align.ghn.")] = "",
) -> None:
    """List the keys of a configuration, their defaults and their meanings."""
    from nnit_dist.stages.config import known_keys

    table = Table(Column("key", no_wrap=True), "default", "meaning", box=None)
    for key in known_keys(start):
        table.add_row(key.path, key.default, key.meaning)
    console.print(table)


@app.command()
def tasks(
    names: Annotated[list[str] | None, typer.Argument(help="tasks to try; all by default")] = None,
    debug: Debug = False,
) -> None:
    """Try the tasks of ManiSkill3 here: can policies be measured, and populations trained?"""
    from nnit_dist.envs.survey import survey
    from nnit_dist.envs.tasks import all_tasks

    chosen, tried = names or all_tasks(), []
    with StageProgress("tasks") as view:
        view.add("try", total=len(chosen))
        for support in survey(chosen):
            tried.append(support)
            view.update("try", len(tried), support.task)
    reasons = (Column(name, overflow="fold") for name in ("evaluation", "population"))
    table = Table(Column("task", no_wrap=True), "robot", "control mode", *reasons)
    for one in sorted(tried, key=lambda support: (bool(support.evaluation), support.task)):
        why_not = "as evaluation" if one.evaluation else one.population
        table.add_row(
            one.task, one.robot, one.control_mode, one.evaluation or "yes", why_not or "yes"
        )
    console.print(table)
    measured = sum(not support.evaluation for support in tried)
    trained = sum(not support.population for support in tried)
    console.print(f"{len(tried)} tasks: {measured} can be measured, {trained} trained on here")


@app.command()
def doctor() -> None:
    """Show what this machine can do, and what to install for more."""
    from nnit_dist.cli.doctor import examine

    table = Table(show_header=False, box=None)
    for name, value in examine():
        table.add_row(styled((name, "bold")), value)
    console.print(table)


def _load(config: Path, out: Path | None, overrides: list[str] | None) -> "Pipeline":
    from nnit_dist.stages.config_file import load_config
    from nnit_dist.stages.pipeline import Pipeline

    loaded = load_config(config, overrides)
    return Pipeline(loaded, out or runs() / loaded.name)


def _kind_name(kind: str) -> str:
    names = {"teacher": "their own", "seen": "seen", "all unseen": "all of these"}
    beyond = {"deeper": "beyond training: deeper", "wider": "beyond training: wider"}
    return names.get(kind) or beyond.get(kind) or f"unseen: {kind}"


def _summary(pipeline: "Pipeline") -> None:
    """Print each task's success by kind of topology and method, and a sentence on it."""
    from nnit_dist.rollout.results import TaskFigures, task_title
    from nnit_dist.rollout.summaries import METHODS, headline

    tasks: dict[str, TaskFigures] = pipeline.run.figures("evaluate")["tasks"]
    for task in pipeline.config.tasks:
        figures = tasks[task]
        cells: dict[str, dict[str, Text]] = {}
        for row in figures["summaries"]:
            interval = f" ({percent_range(row['low'], row['high'])})"
            cell = styled(percent(row["success_once"]), (interval, "dim"))
            cells.setdefault(row["kind"], {})[row["method"]] = cell
        title = f"{task_title(task, figures)}: success_once in %, mean and 95% interval"
        table = Table("topologies", *METHODS.values(), title=title)
        for kind, by_method in cells.items():
            table.add_row(_kind_name(kind), *(by_method.get(name, "") for name in METHODS.values()))
        console.print(table)
        console.print(headline(figures))
        print_failures(figures["failures"])  # (ids repeat from task to task)
    console.print(f"report: {pipeline.run.report.page}")
    if any(tasks[task]["failures"] for task in pipeline.config.tasks):
        raise typer.Exit(PARTLY)
