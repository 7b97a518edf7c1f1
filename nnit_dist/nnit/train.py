"""Training of NNiT under Ray Train, in one segment or several."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from nnit_dist.artifacts.run_directory import RunDirectory, TrainDirectory
from nnit_dist.core.errors import NnitError
from nnit_dist.core.storage import path_of
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.dataset import AlignedDataset, ListedDataset
from nnit_dist.nnit.model import NNiTModel, NNiTTask
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.training.config import Placement
from nnit_dist.training.loop import Loop, LoopSpec, fit, worker_setup
from nnit_dist.training.optimizer import average_gradients
from nnit_dist.training.state import restore_state, save_state
from nnit_dist.training.warm_start import warm_start

BAR = "nnit"


@dataclass(frozen=True)
class TrainSegment:
    """A part of a training, up to step `until`. A segment resumes from checkpoints under its name.

    Attributes:
        continue_from: a model file whose weights are the start of the training.
        start_from: a trainer's state to resume from, written by the segment before.
        state: the file for the trainer's state at the end, if another segment follows.
    """

    name: str
    until: int
    continue_from: Path | None = None
    start_from: Path | None = None
    state: Path | None = None


@dataclass(frozen=True)
class NNiTSpec:
    """The work of a Ray Train worker. Paths are text, because they are sent to other machines."""

    config: NNiTConfig
    hypernet: str
    result: str
    until: int
    seed: int
    continue_from: str | None
    start_from: str | None
    state: str | None


@dataclass(frozen=True)
class NNiTTraining:
    """A training of NNiT on the networks of a hypernetwork."""

    config: NNiTConfig
    hypernet: Path
    out: TrainDirectory
    placement: Placement
    seed: int

    def run(self, segment: TrainSegment, view: StageProgress) -> None:
        """Train a segment under Ray Train, and write the model.

        Raises:
            NnitError: training failed more often than its placement allows.
        """
        spec = NNiTSpec(
            self.config,
            hypernet=str(self.hypernet.absolute()),
            result=str(self.out.nnit.absolute()),
            until=segment.until,
            seed=self.seed,
            continue_from=_text(segment.continue_from),
            start_from=_text(segment.start_from),
            state=_text(segment.state),
        )
        fit(
            nnit_worker,
            spec,
            self.placement,
            directory=self.out.path,
            name=segment.name,
            view=(view, BAR),
        )


def nnit_worker(spec: NNiTSpec, loop_spec: LoopSpec) -> None:
    """Train up to step `spec.until`, then write the model, and the state if `spec.state` is set."""
    device, rank, workers = worker_setup()
    writes_on = torch.device("cpu") if loop_spec.loaders else device
    hypernet = HypernetModel.load(path_of(spec.hypernet)).to(writes_on)
    dataset = AlignedDataset(hypernet, spec.config, spec.seed)
    trainer = Trainer(
        spec.config,
        dataset,
        device,
        spec.seed,
        share=(rank, workers),
        average_gradients=average_gradients,
    )
    loop = Loop(trainer.state(), loop_spec, log_every=20, save_every=spec.config.checkpoint_every)
    if loop.start == 0 and spec.start_from:
        loop.start = restore_state(trainer.state(), path_of(spec.start_from))
    elif loop.start == 0 and spec.continue_from:
        warm_start_from(trainer, NNiTModel.load(path_of(spec.continue_from)))
    loop.run(spec.until, trainer.sample_batch, trainer.train_step)
    if rank == 0:
        trained_model(trainer, dataset).save(path_of(spec.result))
        if spec.state:
            save_state(trainer.state(), spec.until, path_of(spec.state))


@torch.no_grad()
def trained_model(trainer: Trainer, dataset: AlignedDataset | ListedDataset) -> NNiTModel:
    """The trained model, with the averaged network.

    Its weights are rounded to float16, because model files hold float16.
    """
    network = copy.deepcopy(trainer.average).cpu()
    for parameter in network.parameters():
        parameter.copy_(parameter.half())
    parts = zip(dataset.model.tasks, dataset.token_normalizers, dataset.best_success, strict=True)
    return NNiTModel(
        network.eval(),
        trainer.config.transformer,
        dataset.vocabulary,
        [NNiTTask(task.task, task.normalizer, tokens, best) for task, tokens, best in parts],
        dataset.distribution,
        trainer.config.condition_dropout > 0,
    )


def warm_start_from(trainer: Trainer, earlier: NNiTModel) -> None:
    """Copy the weights of a trained model; its tasks come first, new tasks after them.

    Raises:
        NnitError: the networks have other sizes, or the earlier tasks do not come first.
    """
    same = trainer.config.transformer == earlier.config
    if not (same and trainer.dataset.vocabulary.extends(earlier.vocabulary)):
        raise NnitError(
            f"cannot continue from this model of {', '.join(earlier.vocabulary.tasks)}: name its "
            "tasks first and in this order, and keep its nnit.transformer, nnit.patch, widths and "
            "depths."
        )
    for network in (trainer.network, trainer.average):
        warm_start(network, earlier.network)


def training_of(run: RunDirectory) -> tuple[NNiTConfig, int]:
    """The configuration and the seed with which a finished run trained its NNiT."""
    settings = run.settings("train")
    return NNiTConfig(**settings["nnit"]), settings["seed"]


def _text(path: Path | None) -> str | None:
    return str(path.absolute()) if path else None
