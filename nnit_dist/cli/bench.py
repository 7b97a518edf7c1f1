"""`nnit bench`: parses and calls the benches."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.cli.options import Debug
from nnit_dist.runtime.progress import console, quiet_libraries

bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


Run = Annotated[Path | None, typer.Option(help="a finished run; the shipped one by default")]
Task = Annotated[str, typer.Option(help="one of the run's")]
Episodes = Annotated[int, typer.Option(min=1, help="episodes a network")]
Samples = Annotated[int, typer.Option(min=1, help="networks a topology")]
Actors = Annotated[int | None, typer.Option(min=1, help="simulator processes")]
Out = Annotated[Path, typer.Option(help="where results are kept")]
Kept = Annotated[Path, typer.Option(help="where baselines that are trained are kept")]
BENCH = Path("runs/bench")


@bench_app.command("pool")
def bench_pool(
    task: Annotated[list[str] | None, typer.Option(help="may be given several times")] = None,
    seconds: Annotated[float, typer.Option(help="of measuring, a task and setting")] = 15.0,
    scale: Annotated[bool, typer.Option(help="1,000 stand-in simulators as well")] = True,
    debug: Debug = False,
) -> None:
    """The evaluation pool beside the bare ManiSkill loop, and its driver at scale."""
    from nnit_dist.bench.pool import lines
    from nnit_dist.runtime.ray_session import ray_session

    tasks = task or ["PushCube-v1", "PickCube-v1"]
    with quiet_libraries(BENCH / "pool.log"), ray_session():
        for line in lines(os.cpu_count() or 1, seconds, tasks, scale):
            console.print(line)


@bench_app.command("scaling")
def bench_scaling(
    task: Task = "PushCube-v1",
    seconds: Annotated[float, typer.Option(help="of measuring, a stage and setting")] = 10.0,
    steps: Annotated[int, typer.Option(min=1, help="of training, a setting")] = 10,
    debug: Debug = False,
) -> None:
    """What each stage costs with 1, 2, ... workers here, and what a cluster makes of it."""
    from nnit_dist.bench.scaling import lines
    from nnit_dist.runtime.ray_session import ray_session

    with quiet_libraries(BENCH / "scaling.log"), ray_session():
        for line in lines(task, os.cpu_count() or 1, seconds, steps):
            console.print(line)


@bench_app.command("population")
def bench_population(
    task: Task = "PushCube-v1",
    seconds: Annotated[float, typer.Option(help="of measuring, of each kind")] = 30.0,
    seeds: Annotated[int, typer.Option(min=0, help="of learning curves; 0 for none")] = 0,
    env_steps: Annotated[int, typer.Option(min=1, help="of each learning curve")] = 120_000,
    debug: Debug = False,
) -> None:
    """PPO's env steps a second beside the bare ManiSkill loop, and beside RLlib's own parts."""
    from nnit_dist.bench.population import lines
    from nnit_dist.runtime.ray_session import ray_session

    with quiet_libraries(BENCH / "population.log"), ray_session():
        for line in lines(task, seconds, os.cpu_count() or 1, env_steps=env_steps, seeds=seeds):
            console.print(line)


@bench_app.command("zoo")
def bench_zoo(
    policies: Annotated[int, typer.Option(min=1, help="made up for it, 15 kB each")] = 100_000,
    debug: Debug = False,
) -> None:
    """A zoo of many policies: writing, scanning, filtering and sharing it, beside pyarrow alone."""
    import tempfile

    from nnit_dist.bench.zoo import bench_zoo as lines

    with tempfile.TemporaryDirectory() as directory:
        for line in lines(Path(directory), policies):
            console.print(line)


@bench_app.command("train")
def bench_train(
    size: Annotated[Literal["pushcube", "100m"], typer.Option(help="of the network")] = "pushcube",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    steps: Annotated[int, typer.Option(min=1)] = 20,
    debug: Debug = False,
) -> None:
    """Speed of NNiT's training step, and its share of the device's matmul peak."""
    import torch

    from nnit_dist.bench.train import lines

    for line in lines(size, torch.device(device), steps):
        console.print(line)


@bench_app.command("generalization")
def bench_generalization(
    run: Run = None,
    task: Task = "PushCube-v1",
    kind: Annotated[
        list[str] | None, typer.Option(help="of unseen topologies; all that the run held out")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="topologies a kind, at most")] = 24,
    samples: Samples = 4,
    episodes: Episodes = 100,
    trained: Annotated[
        bool, typer.Option("--trained", help="baselines that need training too")
    ] = False,
    trained_baselines: Kept = BENCH / "trained-baselines",
    out: Out = BENCH / "generalization",
    actors: Actors = None,
    debug: Debug = False,
) -> None:
    """NNiT beside baselines, on topologies that training never saw."""
    from nnit_dist.bench.generalization import as_markdown
    from nnit_dist.bench.generalization import bench_generalization as measure
    from nnit_dist.bench.results import BenchSize
    from nnit_dist.core.splits import UNSEEN_KINDS, unseen_kind

    with quiet_libraries(out / "bench.log"):
        figures = measure(
            _finished(run, task),
            task,
            [unseen_kind(text) for text in kind or UNSEEN_KINDS],
            BenchSize(count, samples, episodes),
            out=out,
            actors=actors,
            trained_baselines=trained_baselines if trained else None,
        )
    _show(as_markdown(figures), out)


@bench_app.command("refine")
def bench_refine(
    run: Run = None,
    task: Task = "LiftPegUpright-v1",
    steps: Annotated[list[int] | None, typer.Option(help="of imitation; 100, 500 and 2000")] = None,
    count: Annotated[int, typer.Option(min=1, help="topologies a kind, at most")] = 16,
    samples: Samples = 1,
    sampler_steps: Annotated[int, typer.Option(min=1, help="of NNiT")] = 16,
    episodes: Episodes = 100,
    out: Out = BENCH / "refine",
    actors: Actors = None,
    debug: Debug = False,
) -> None:
    """What a little training makes of a policy, from NNiT's weights and from random ones."""
    from nnit_dist.bench.refine import as_markdown
    from nnit_dist.bench.refine import bench_refine as measure
    from nnit_dist.bench.results import BenchSize

    budgets = sorted(steps or [100, 500, 2000])
    with quiet_libraries(out / "bench.log"):
        figures = measure(
            _finished(run, task),
            task,
            budgets,
            BenchSize(count, samples, episodes),
            sampler_steps=sampler_steps,
            out=out,
            actors=actors,
        )
    _show(as_markdown(figures), out)


@bench_app.command("alignment")
def bench_alignment(
    run: Run = None,
    task: Task = "PushCube-v1",
    count: Annotated[int, typer.Option(min=1, help="topologies of each kind")] = 12,
    samples: Samples = 2,
    episodes: Episodes = 50,
    trained_baselines: Kept = BENCH / "trained-baselines",
    out: Out = BENCH / "alignment",
    actors: Actors = None,
    debug: Debug = False,
) -> None:
    """How aligned five kinds of weights are, and what NNiT makes of each."""
    from nnit_dist.bench.alignment import as_markdown
    from nnit_dist.bench.alignment import bench_alignment as measure
    from nnit_dist.bench.results import BenchSize

    with quiet_libraries(out / "bench.log"):
        figures = measure(
            _finished(run, task),
            task,
            trained_baselines,
            BenchSize(count, samples, episodes),
            out=out,
            actors=actors,
        )
    _show(as_markdown(figures), out)


@bench_app.command("memorization")
def bench_memorization(
    run: Run = None,
    task: Task = "PushCube-v1",
    hidden: Annotated[list[str] | None, typer.Option(help="seen topologies, e.g. 64x64")] = None,
    trained: Annotated[
        int, typer.Option(min=16, help="training networks a topology, at most")
    ] = 1000,
    drawn: Annotated[int, typer.Option(min=1, help="networks of every kind a topology")] = 16,
    episodes: Episodes = 100,
    out: Out = BENCH / "memorization",
    actors: Actors = None,
    debug: Debug = False,
) -> None:
    """Whether NNiT's networks are new or copies of training networks."""
    from nnit_dist.bench.memorization import Counts
    from nnit_dist.bench.memorization import bench_memorization as measure
    from nnit_dist.bench.memorization_page import as_markdown
    from nnit_dist.core.topology import parse_hidden

    topologies = [parse_hidden(text) for text in hidden or ["32", "64x64", "32x48x64"]]
    with quiet_libraries(out / "bench.log"):
        figures = measure(
            _finished(run, task),
            task,
            topologies,
            Counts(trained, drawn, episodes),
            out=out,
            actors=actors,
        )
    _show(as_markdown(figures), out)


def _finished(run: Path | None, task: str) -> RunDirectory:
    """The run that is named, or the one that ships."""
    return RunDirectory(run) if run else shipped(task)


def _show(text: str, out: Path) -> None:
    console.print(text)
    console.print(f"results in {out}")
