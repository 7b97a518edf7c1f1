"""The configuration of NNiT and its training under Ray Train: one worker."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from nnit_dist.align.grow import grow
from nnit_dist.align.sampler import load_samplers
from nnit_dist.align.turns import Turns
from nnit_dist.artifacts import read_json
from nnit_dist.errors import NnitError
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.source import AlignedSource
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.nnit.transformer import TransformerConfig
from nnit_dist.storage import path_of
from nnit_dist.training import Loop, average_gradients, restore_state, save_state, worker_setup


class NNiTConfig(BaseModel):
    """The transformer and its training."""

    model_config = ConfigDict(extra="forbid")

    patch: int = Field(8, gt=0, description="side of a weight patch")
    transformer: TransformerConfig = TransformerConfig()
    steps: int = Field(2000, gt=0, description="of the optimiser")
    topologies: int = Field(8, gt=0, description="topologies a step, over all workers")
    networks: int = Field(4, gt=0, description="networks of each of them")
    reuse: int = Field(
        1,
        gt=0,
        description="steps that use a network; more than one pays without loaders",
    )
    turns: Turns = {}
    architectures: int = Field(32, ge=0, description="architectures alone beside them")
    accumulate: int = Field(1, gt=0, description="parts that a worker's share is computed in")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of the optimiser")
    ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights")
    mask_rate: float = Field(
        0.1, ge=0, le=1, description="of networks, whose architecture tokens are partly hidden"
    )
    drop_rate: float = Field(
        0.1, ge=0, le=1, description="of examples not told task and success; guidance needs some"
    )
    architecture_weight: float = Field(0.05, ge=0, description="of the architecture tokens' loss")
    time_mean: float = Field(
        0.0, description="of the noise levels' logits; more is nearer to the data, less to noise"
    )
    time_std: float = Field(1.0, ge=0, description="spread of these logits")
    width_jitter: float = Field(3.0, ge=0, description="error, in units, of the widths told")
    depth_jitter: float = Field(1.0, ge=0, description="error, in layers, of the depth told")
    best_share: float = Field(
        0.5, ge=0, le=1, description="of networks after trials' best snapshots, if others teach"
    )
    bf16: bool = Field(True, description="autocast where the device computes in bfloat16")
    checkpoint_every: int = Field(100, gt=0, description="steps")


def trained_with(run: Path) -> tuple[NNiTConfig, int]:
    """Settings and seed of a run's NNiT."""
    key = read_json(run / "train" / "manifest.json")["key"]["config"]
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
    source = AlignedSource(samplers, settings, seed)
    trainer = Trainer(settings, source, device, seed, (rank, workers), average_gradients)
    loop = Loop(trainer.state(), config, log_every=20, save_every=settings.checkpoint_every)
    if loop.start == 0 and start:
        loop.start = restore_state(trainer.state(), path_of(start))
    elif loop.start == 0 and known:
        begin_with(trainer, NNiTModel.load(path_of(known)))
    loop.run(config["until"], trainer.prepare, trainer.descend)
    if rank == 0:
        NNiTModel.of(trainer, source).save(path_of(config["result"]))
        if config.get("state"):
            save_state(trainer.state(), config["until"], path_of(config["state"]))


def begin_with(trainer: Trainer, known: NNiTModel) -> None:
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
        grow(network, known.network)
