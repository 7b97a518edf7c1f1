"""What the two trainers share: a resumable loop under Ray Train, and its live view.

State is everything with `state_dict` and `load_state_dict`. Randomness depends on the seed and
the step (and on rank or example), so a resumed run takes the steps that an unbroken one would
have taken. What is random in a step is drawn by `sample_batch`, if need be in processes that work
ahead.
"""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from nnit_dist.artifacts.run_directory import METRICS
from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import append, path_of
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.state import read_metrics, restore_state, save_state

_STATE = "state.pt"
# Seconds in which there must be room for all workers. After the loss of a node those that it had
# are awaited once more, before training goes on with fewer.
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Seconds between looks at the workers. A worker that has kept a checkpoint goes on, and a training
# that has ended returns, when it is looked at.
_LOOK_EVERY = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
T = TypeVar("T")
Spec = TypeVar("Spec")


@dataclass(frozen=True)
class LoopSpec:
    """What a worker's loop has to know: where metrics go, and how many processes work ahead."""

    metrics: str
    loaders: int


def fit(
    worker: Callable[[Spec, LoopSpec], None],
    spec: Spec,
    placement: Placement,
    *,
    directory: Path,
    name: str,
    view: tuple[StageProgress, str],
) -> None:
    """Run `worker(spec, ...)` on every worker of Ray Train until it returns.

    The same `name` resumes. Reads and writes Ray Train's checkpoints in `directory/name`, and
    metrics in `directory`, which are shown in a bar of `view`.

    Raises:
        NnitError: training failed more often than its retries allow.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from nnit_dist.training.process_group import NodeNetwork

    least, most = placement.min_workers, placement.workers
    settings = {_START_TIMEOUT: "20" if least else "300", _LOOK_EVERY: "0.5"}
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "worker": worker,
            "spec": spec,
            "loop": LoopSpec(str((directory / METRICS).absolute()), placement.loaders_a_worker),
        },
        torch_config=NodeNetwork(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(least, most) if least else most,  # type: ignore[arg-type]
            use_gpu=placement.gpu,
            resources_per_worker={"CPU": placement.cpus} | ({"GPU": 1} if placement.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(directory.absolute()),
            failure_config=ray.train.FailureConfig(max_failures=placement.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with defaults_of_environment(settings), _follow(directory / METRICS, *view):
            trainer.fit()
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise NnitError(
            f"training in {directory} failed: {reason} The last checkpoint is kept; run the same "
            "command to go on."
        ) from error


def _work(config: dict[str, Any]) -> None:
    """Ray Train's own form of a worker."""
    config["worker"](config["spec"], config["loop"])


@contextlib.contextmanager
def defaults_of_environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables until the block ends, but for those that the user has set."""
    ours = settings.keys() - os.environ.keys()
    os.environ.update({name: settings[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _follow(path: Path, view: StageProgress, bar: str) -> Iterator[None]:
    """Show the newest line of a metrics file until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            rows = read_metrics(path)
            if rows:
                note = "  ".join(
                    f"{k} {v:.4g}" for k, v in rows[-1].items() if k not in ("step", "seconds")
                )
                view.update(bar, int(rows[-1]["step"]), note)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Loop:
    """The steps of one training worker: logging, checkpoints, resume."""

    def __init__(
        self, state: dict[str, Any], spec: LoopSpec, log_every: int, save_every: int
    ) -> None:
        import ray.train

        self.train = ray.train
        self.rank = ray.train.get_context().get_world_rank()
        self.state, self.metrics_path = state, path_of(spec.metrics)
        self.log_every, self.save_every = log_every, save_every
        self.loaders = spec.loaders
        self.start = self._restore()

    def run(
        self,
        total: int,
        sample_batch: Callable[[int], T],
        train_step: Callable[[int, T], dict[str, float]],
    ) -> None:
        """`descend(step, prepare(step))` up to `total`, from where the last checkpoint stands."""
        sums: dict[str, float] = {}
        count, began = 0, time.monotonic()
        steps = range(self.start, total)
        for step, batch in zip(
            steps, batches_ahead(sample_batch, steps, self.loaders), strict=True
        ):
            for name, value in train_step(step, batch).items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            done = step + 1
            if done % self.log_every == 0 or done == total:
                means = {name: value / count for name, value in sums.items()}
                self._log({"step": done, "seconds": time.monotonic() - began, **means})
                sums, count = {}, 0
            if done % self.save_every == 0 or done == total:
                self._save(done)

    def _log(self, row: dict[str, float]) -> None:
        if self.rank == 0:
            append(self.metrics_path, json.dumps(row) + "\n")

    def _save(self, step: int) -> None:
        if self.rank != 0:
            self.train.report({"step": step})
            return
        with tempfile.TemporaryDirectory() as directory:
            save_state(self.state, step, Path(directory) / _STATE)
            self.train.report(
                {"step": step},
                checkpoint=self.train.Checkpoint.from_directory(directory),
                checkpoint_dir_name=f"step-{step:08d}",
            )

    def _restore(self) -> int:
        checkpoint = self.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as directory:
            return restore_state(self.state, Path(directory) / _STATE)


def batches_ahead(sample_batch: Callable[[int], T], steps: range, loaders: int) -> Iterator[T]:
    """`prepare(step)` of every step in turn, by so many processes that work ahead, if any.

    They are forked: `prepare` must leave a GPU alone.
    """
    if loaders == 0 or not steps:
        return map(sample_batch, steps)
    return iter(
        DataLoader(
            _Steps(sample_batch, steps),
            batch_size=None,
            num_workers=min(loaders, len(steps)),
            multiprocessing_context="fork",
            collate_fn=_unchanged,
        )
    )


class _Steps(Dataset[T]):
    """What `prepare` makes of every step, as a map-style dataset."""

    def __init__(self, sample_batch: Callable[[int], T], steps: range) -> None:
        self.sample_batch, self.steps = sample_batch, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> T:
        return self.sample_batch(self.steps[index])


def _unchanged(batch: T) -> T:
    return batch


def worker_setup() -> tuple[torch.device, int, int]:
    """Device and rank of this worker, and how many there are; CPU threads follow its resources."""
    import ray
    import ray.train.torch

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    context = ray.train.get_context()
    return ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
