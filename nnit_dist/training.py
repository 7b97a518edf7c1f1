"""What the two trainers share: a resumable loop under Ray Train, and its live view.

State is everything with `state_dict` and `load_state_dict`. Randomness depends on the seed and
the step (and on rank or example), so a resumed run takes the steps that an unbroken one would
have taken. What is random in a step is drawn by `prepare`, if need be in processes that work ahead.
"""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch.utils.data import DataLoader, Dataset

from nnit_dist.artifacts import write_atomic
from nnit_dist.errors import NnitError
from nnit_dist.progress import StageProgress
from nnit_dist.storage import append, path_of

METRICS = "metrics.jsonl"
_STATE = "state.pt"
# Seconds in which there must be room for all workers. After the loss of a node those that it had
# are awaited once more, before training goes on with fewer.
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Seconds between looks at the workers. A worker that has kept a checkpoint goes on, and a training
# that has ended returns, when it is looked at.
_LOOK_EVERY = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
T = TypeVar("T")


class Placement(BaseModel):
    """Where training runs: workers of Ray Train and what each of them gets."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(1, gt=0, description="of Ray Train, which share every step")
    min_workers: int | None = Field(
        None,
        gt=0,
        description="go on with as few where nodes are lost or do not come, and grow again; by "
        "default only with all workers",
    )
    gpu: bool = Field(False, description="one GPU a worker")
    cpus: int = Field(2, gt=0, description="CPUs a worker")
    loaders: int | None = Field(
        None,
        ge=0,
        description="processes a worker that prepare batches ahead; by default none on a CPU, and "
        "beside a GPU one for each of its CPUs but one",
    )

    retries: int = Field(
        3, ge=0, description="how often training goes on from its last checkpoint after a failure"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Placement":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} are more than workers={self.workers}")
        return self

    @property
    def loaders_a_worker(self) -> int:
        """`loaders`, or their default."""
        if self.loaders is not None:
            return self.loaders
        return self.cpus - 1 if self.gpu else 0


def fit(
    train_fn: Callable[[dict], None],
    config: dict[str, Any],
    directory: Path,
    name: str,
    view: tuple[StageProgress, str],
    placement: Placement,
) -> None:
    """Run `train_fn` under Ray Train until it returns; the same `name` resumes.

    Reads and writes Ray Train's checkpoints in `directory/name`, metrics in
    `directory/metrics.jsonl`.

    Raises:
        NnitError: training failed more often than its retries allow.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from nnit_dist.process_group import NodeNetwork

    least, most = placement.min_workers, placement.workers
    settings = {_START_TIMEOUT: "20" if least else "300", _LOOK_EVERY: "0.5"}
    trainer = TorchTrainer(
        train_fn,
        train_loop_config=config
        | {
            "metrics": str((directory / METRICS).absolute()),
            "loaders": placement.loaders_a_worker,
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


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file by step; of a step that was repeated after a crash, the last."""
    if not path.exists():
        return []
    rows: dict[float, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that a killed process left half-written
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def load_state(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote of tensors and numbers, on the CPU; no pickled objects."""
    with path.open("rb") as file:
        return torch.load(file, weights_only=True, map_location="cpu")


def save_state(state: dict[str, Any], step: int, path: Path) -> None:
    """Everything with which a training goes on from `step`, as one file."""
    kept = {name: part.state_dict() for name, part in state.items()}
    write_atomic(path, lambda partial: torch.save({"step": step, **kept}, partial))


def restore_state(state: dict[str, Any], path: Path) -> int:
    """Take over what `save_state` wrote; returns the step to go on from."""
    saved = load_state(path)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def steps_logged(path: Path) -> int:
    """How far a training with this metrics file has come."""
    rows = read_metrics(path)
    return int(rows[-1]["step"]) if rows else 0


class Loop:
    """The steps of one training worker: logging, checkpoints, resume."""

    def __init__(
        self, state: dict[str, Any], config: dict[str, Any], log_every: int, save_every: int
    ) -> None:
        import ray.train

        self.train = ray.train
        self.rank = ray.train.get_context().get_world_rank()
        self.state, self.metrics_path = state, path_of(config["metrics"])
        self.log_every, self.save_every = log_every, save_every
        self.loaders = config["loaders"]
        self.start = self._restore()

    def run(
        self,
        total: int,
        prepare: Callable[[int], T],
        descend: Callable[[int, T], dict[str, float]],
    ) -> None:
        """`descend(step, prepare(step))` up to `total`, from where the last checkpoint stands."""
        sums: dict[str, float] = {}
        count, began = 0, time.monotonic()
        steps = range(self.start, total)
        for step, batch in zip(steps, prepared(prepare, steps, self.loaders), strict=True):
            for name, value in descend(step, batch).items():
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


def prepared(prepare: Callable[[int], T], steps: range, loaders: int) -> Iterator[T]:
    """`prepare(step)` of every step in turn, by so many processes that work ahead, if any.

    They are forked: `prepare` must leave a GPU alone.
    """
    if loaders == 0 or not steps:
        return map(prepare, steps)
    return iter(
        DataLoader(
            _Steps(prepare, steps),
            batch_size=None,
            num_workers=min(loaders, len(steps)),
            multiprocessing_context="fork",
            collate_fn=_unchanged,
        )
    )


class _Steps(Dataset[T]):
    """What `prepare` makes of every step, as a map-style dataset."""

    def __init__(self, prepare: Callable[[int], T], steps: range) -> None:
        self.prepare, self.steps = prepare, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> T:
        return self.prepare(self.steps[index])


def _unchanged(batch: T) -> T:
    return batch


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean of the gradients over all workers, in one message; nothing with one worker.

    Plain data parallelism: every worker starts from the same seed and takes the same steps.
    Parameters that took no part in the loss count as zero.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, piece in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = piece.view_as(parameter)


def worker_setup() -> tuple[torch.device, int, int]:
    """Device and rank of this worker, and how many there are; CPU threads follow its resources."""
    import ray
    import ray.train.torch

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    context = ray.train.get_context()
    return ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
