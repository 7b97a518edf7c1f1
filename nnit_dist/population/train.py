"""Training of the population: PPO trials under Ray Tune, whose snapshots fill the zoo."""

from typing import TypedDict

from ray import tune

from nnit_dist.artifacts.run_directory import PopulationDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import copy, read_json
from nnit_dist.core.storage import beside
from nnit_dist.population.config import PopulationConfig, TrialSpec
from nnit_dist.population.trial import SnapshotResult, read_progress, train_trial
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.runtime.ray_session import AWAY_FROM_TRAINING


class TrialFigures(TypedDict):
    """What a trial of PPO came to; `success_once` is that of its best snapshot."""

    env_steps: int
    seconds: float
    success_once: float
    history: list[SnapshotResult]


class PopulationFigures(TypedDict):
    """What the population stage came to: its trials by id, and totals."""

    trials: dict[str, TrialFigures]
    env_steps: int
    snapshots: int


def trial_specs(config: PopulationConfig, tasks: list[str], control_mode: str) -> list[TrialSpec]:
    """The trials of a population, one for each task, architecture and seed."""
    return [
        TrialSpec(task, control_mode, hidden, seed, activation)
        for task in tasks
        for seed in config.seeds
        for hidden, activation in config.architectures_of(task)
    ]


def run_population(
    config: PopulationConfig,
    tasks: list[str],
    control_mode: str,
    out: PopulationDirectory,
    *,
    continue_from: PopulationDirectory | None = None,
) -> PopulationFigures:
    """Train all unfinished trials; writes the zoo and a directory for each trial.

    Finished trials of `continue_from` are copied, with all snapshots of that population.

    Raises:
        NnitError: a trial failed more than `max_failures` times. Finished trials are kept.
    """
    if continue_from:
        _copy_finished_trials(continue_from, out)
    specs = trial_specs(config, tasks, control_mode)
    open_specs = [spec for spec in specs if not _is_done(out, spec)]
    reason = _run_trials(config, open_specs, out) if open_specs else ""
    failed = [spec.id for spec in specs if not _is_done(out, spec)]
    if failed:
        raise NnitError(
            f"{len(failed)} of {len(specs)} trials failed: {', '.join(failed)}. {reason}The others "
            f"are kept; see {beside(out.path.parent, 'logs') / 'population.log'} and run the same "
            "command to try again."
        )
    return _figures(out, specs)


def _copy_finished_trials(population: PopulationDirectory, out: PopulationDirectory) -> None:
    """Copy the finished trials of another population, and its zoo."""
    for trial in population.trials():
        if read_json(population.progress(trial))["done"]:
            copy(population.progress(trial), out.progress(trial))
    for file in population.zoo.files():
        copy(file, out.zoo.path / file.name)


def _is_done(out: PopulationDirectory, spec: TrialSpec) -> bool:
    progress = read_progress(out.progress(spec.id))
    return progress is not None and progress.done


def _run_trials(config: PopulationConfig, specs: list[TrialSpec], out: PopulationDirectory) -> str:
    """Run trials; returns why the first one failed, if one did."""
    with StageProgress("env steps") as view:
        results = tune.Tuner(
            tune.with_resources(train_trial, trial_resources(config)),
            param_space={
                "trial": tune.grid_search(
                    [
                        {"spec": vars(spec), "recipe": config.recipe_of(spec.task).model_dump()}
                        for spec in specs
                    ]
                ),
                "out": str(out.path.absolute()),
                "gpu": config.gpu > 0,
            },
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(out.path.absolute()),
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                verbose=0,
                callbacks=[_Watch(view, out, config, specs)],
            ),
        ).fit()
    return next((f"The first one: {_reason(error)}. " for error in results.errors), "")


def _reason(error: Exception) -> str:
    """The last line of a remote traceback: what was raised."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def trial_resources(config: PopulationConfig) -> tune.PlacementGroupFactory:
    """Resources of a trial: CPUs, and a share of a GPU or a node that is not for training."""
    bundle = {"CPU": config.cpus, "GPU": config.gpu}
    if config.gpu:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[AWAY_FROM_TRAINING])


class _Watch(tune.Callback):
    """Shows the trials' reports: a bar for all trials, and one for each that is running."""

    ALL = "all trials"

    def __init__(
        self,
        view: StageProgress,
        out: PopulationDirectory,
        config: PopulationConfig,
        specs: list[TrialSpec],
    ) -> None:
        self.view = view
        progress = {spec.id: read_progress(out.progress(spec.id)) for spec in specs}
        self.steps = {name: known.env_steps if known else 0 for name, known in progress.items()}
        self.totals = {spec.id: config.recipe_of(spec.task).env_steps for spec in specs}
        view.add(self.ALL, sum(self.totals.values()), sum(self.steps.values()))
        self.running: set[str] = set()

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks, which a live view does not allow

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        name, steps = result["trial"], result["env_steps"]
        self.steps[name] = steps
        note = f"success {result['success']:.2f}  return {result['return']:.1f}"
        if name not in self.running:
            self.running.add(name)
            self.view.add(name, self.totals[name], steps)
        self.view.update(self.ALL, sum(self.steps.values()), f"{name}: {note}")
        self.view.update(name, steps, note)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        if trial.last_result and "trial" in trial.last_result:
            name, success = trial.last_result["trial"], trial.last_result["success"]
            self.totals[name] = self.steps[name]
            self.view.remove(name, f"success {success:.2f} after {self.steps[name]:,} env steps")
            self.view.resize(self.ALL, sum(self.totals.values()))


def _figures(out: PopulationDirectory, specs: list[TrialSpec]) -> PopulationFigures:
    trials: dict[str, TrialFigures] = {}
    for spec in specs:
        progress = read_progress(out.progress(spec.id))
        assert progress is not None
        trials[spec.id] = {
            "env_steps": progress.env_steps,
            "seconds": round(progress.seconds, 1),
            "success_once": max(entry["success_once"] for entry in progress.history),
            "history": progress.history,
        }
    return {
        "trials": trials,
        "env_steps": sum(trial["env_steps"] for trial in trials.values()),
        "snapshots": len(out.zoo.rows()),
    }
