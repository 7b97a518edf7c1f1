"""The training loop of both trainers: resumable, under Ray Train, with a live view.

Random numbers depend only on the seed, the step, and the rank or example. So a resumed training
takes the same steps as an uninterrupted one. `sample_batch` draws all random numbers of a step,
possibly ahead of time in other processes.
"""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
from nnit_dist.training.state import Stateful, read_metrics, restore_state, save_state

_STATE = "state.pt"
# Seconds in which all workers must find room. After the loss of a node, training waits as long for
# its workers before it goes on with fewer.
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Seconds between health checks. A worker that has saved a checkpoint waits for the next check, and
# so does the end of training.
_CHECK_EVERY = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
T = TypeVar("T")
Spec = TypeVar("Spec")


@dataclass(frozen=True)
class LoopSpec:
    """What a worker's loop needs to know."""

    metrics: str  # path of the metrics file
    loaders: int  # processes that draw batches ahead


def fit(
    worker: Callable[[Spec, LoopSpec], None],
    spec: Spec,
    placement: Placement,
    *,
    directory: Path,
    name: str,
    view: tuple[StageProgress, str],
) -> None:
    """Run `worker(spec, loop_spec)` on every worker of Ray Train until all return.

    Checkpoints are in `directory / name`, so that the same `name` resumes; metrics are in
    `directory`.

    Args:
        view: the view that shows the latest metrics, and the name of its bar.

    Raises:
        NnitError: training failed more often than `placement.retries` allows.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from nnit_dist.training.process_group import NodeNetwork

    minimum, workers = placement.min_workers, placement.workers
    settings = {_START_TIMEOUT: "20" if minimum else "300", _CHECK_EVERY: "0.5"}

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's handler swallows ^C, and stays when the training has ended."""

    trainer = Trainer(
        _work,
        train_loop_config={
            "worker": worker,
            "spec": spec,
            "loop": LoopSpec(str((directory / METRICS).absolute()), placement.loaders_a_worker),
        },
        torch_config=NodeNetwork(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(minimum, workers) if minimum else workers,  # type: ignore[arg-type]
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


def _work(config: dict) -> None:
    config["worker"](config["spec"], config["loop"])


@contextlib.contextmanager
def defaults_of_environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables until the block ends, except those that are set already."""
    added = settings.keys() - os.environ.keys()
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _follow(path: Path, view: StageProgress, bar: str) -> Iterator[None]:
    """Show the latest row of a metrics file until the block ends."""
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
    """The steps of a training worker, with logging, checkpoints and resuming.

    Args:
        state: everything that a checkpoint keeps, by name. A checkpoint is restored right away.
        log_every: steps between rows of the metrics file, which only rank 0 writes.
        save_every: steps between checkpoints.

    Attributes:
        start: the step to go on from.
    """

    def __init__(
        self, state: Mapping[str, Stateful], spec: LoopSpec, *, log_every: int, save_every: int
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
        """Run `train_step(step, sample_batch(step))` for all steps from `start` up to `total`.

        `train_step` returns losses by name. Rows of the metrics file hold their means.
        """
        sums: dict[str, float] = {}
        count, started = 0, time.monotonic()
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
                self._log({"step": done, "seconds": time.monotonic() - started, **means})
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
    """`sample_batch(step)` of all steps in order, computed ahead in `loaders` processes, if any.

    The processes are forked, so `sample_batch` must not use a GPU.
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
    """The batches of all steps as a map-style dataset."""

    def __init__(self, sample_batch: Callable[[int], T], steps: range) -> None:
        self.sample_batch, self.steps = sample_batch, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> T:
        return self.sample_batch(self.steps[index])


def _unchanged(batch: T) -> T:
    return batch


def worker_setup() -> tuple[torch.device, int, int]:
    """Device and rank of this worker, and the number of workers.

    Sets torch's threads to the CPUs of the worker.
    """
    import ray
    import ray.train.torch

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    context = ray.train.get_context()
    return ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
