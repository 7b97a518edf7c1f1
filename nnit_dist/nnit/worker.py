"""The configuration of NNiT and its training under Ray Train: one worker."""

from pathlib import Path

import torch

from nnit_dist.artifacts.legacy import upgrade_config
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.storage import path_of
from nnit_dist.hypernet.model import load_samplers
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.dataset import AlignedDataset
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.training.loop import Loop, worker_setup
from nnit_dist.training.optimizer import average_gradients
from nnit_dist.training.state import restore_state, save_state
from nnit_dist.training.warm_start import warm_start


def trained_with(run: Path) -> tuple[NNiTConfig, int]:
    """Settings and seed of a run's NNiT."""
    key = upgrade_config(read_json(run / "train" / "manifest.json")["key"]["config"])
    return NNiTConfig(**key["nnit"]), key["seed"]


def nnit_worker(config: dict) -> None:
    """Ray Train loop: train up to `config["until"]` steps, then write the model.

    With `start_from` it goes on from what another run of it wrote as its `state`.
    """
    device, rank, workers = worker_setup()
    settings, seed = NNiTConfig(**config["nnit"]), config["seed"]
    writes_on = torch.device("cpu") if config["loaders"] else device
    samplers = [sampler.to(writes_on) for sampler in load_samplers(path_of(config["ghn"]))]
    start, known = config.get("start_from"), config.get("continue_from")
    source = AlignedDataset(samplers, settings, seed)
    trainer = Trainer(settings, source, device, seed, (rank, workers), average_gradients)
    loop = Loop(trainer.state(), config, log_every=20, save_every=settings.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = restore_state(trainer.state(), path_of(start))
    elif loop.start == 0 and known:
        warm_start_from(trainer, NNiTModel.load(path_of(known)))
    loop.run(config["until"], trainer.sample_batch, trainer.train_step)
    if rank == 0:
        NNiTModel.of(trainer, source).save(path_of(config["result"]))
        if config.get("state"):
            save_state(trainer.state(), config["until"], path_of(config["state"]))


def warm_start_from(trainer: Trainer, known: NNiTModel) -> None:
    """Begin a training with a trained model's network; its tasks come first, further ones are new.

    Raises:
        NnitError: the networks differ in more than their tasks.
    """
    same = trainer.config.transformer == known.config
    if not (same and trainer.source.vocabulary.extends(known.vocabulary)):
        raise NnitError(
            f"cannot continue from this model of {', '.join(known.vocabulary.tasks)}: name its "
            "tasks first and in this order, and keep its nnit.transformer, nnit.patch, widths and "
            "depths."
        )
    for network in (trainer.network, trainer.average):
        warm_start(network, known.network)
