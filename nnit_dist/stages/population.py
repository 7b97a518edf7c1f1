"""The population stage: train policies by PPO and store their snapshots in the zoo.

Reads: the population of the run that this one continues from, if any.
Does: trains every task, architecture and seed by PPO (RLlib under Ray Tune).
Writes: `population/zoo` (Parquet) and a directory for each trial.
"""

from pathlib import Path

from nnit_dist.artifacts.run_directory import PopulationDirectory
from nnit_dist.envs.sim import check_for_networks
from nnit_dist.envs.tasks import check_task
from nnit_dist.population.train import run_population
from nnit_dist.runtime.progress import console
from nnit_dist.stages.plan import Figures, RunContext, StagePlan


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if a task or the run to continue from is unusable."""
    config = context.config
    path = context.earlier(lambda run: run.population.path)
    earlier = PopulationDirectory(path) if path else None
    for task in config.tasks:
        check_task(task, training=True)
    key = context.reads("tasks", "control_mode", "population")
    recipes = {task: config.population.recipe_of(task).model_dump() for task in config.tasks}
    key["population"] |= {"recipes": recipes}

    def work(out: Path) -> Figures:
        figures = run_population(
            config.population,
            config.tasks,
            config.control_mode,
            PopulationDirectory(out),
            continue_from=earlier,
        )
        return dict(figures)

    def check() -> None:
        for task in config.tasks:
            _, bounds = check_for_networks(task, config.control_mode)
            if not bounds.normalized:
                console.print(
                    f"{task}: policies act in normalized units, whose -1 and 1 are the bounds of "
                    f"{config.control_mode}"
                )

    inputs = {"known": earlier.zoo.path} if earlier else {}
    return StagePlan("population", key, inputs, work, check)
