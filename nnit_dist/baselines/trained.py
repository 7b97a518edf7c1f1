"""Trained baselines: each is trained once, and its file is used again.

They are NNiT on independently trained weights, on permutation-matched weights, on weights of
hypernetworks with other decoders, and flat-vector diffusion. All use the distillation data of one
run and the number of steps of its NNiT. The NNiT baselines also have the same network.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.baselines.flat import FlatDiffusion
from nnit_dist.baselines.matching import match
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import content_hash, write_atomic
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import Hidden
from nnit_dist.hypernet.config import DistillConfig, GHNConfig
from nnit_dist.hypernet.data import DistillationData
from nnit_dist.hypernet.distill import Distiller, DistillSpec, TaskSource
from nnit_dist.hypernet.imitation import imitate
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.dataset import AlignedDataset, ListedDataset
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import trained_model, training_of
from nnit_dist.nnit.trainer import Trainer
from nnit_dist.training.state import restore_state, save_state

Weights = Literal["independent", "matched", "mlp", "pointwise"]
INDEPENDENT_STEPS = 3000
COPIES = 4  # independent networks of each seen topology for each best teacher
SAVE_EVERY = 250  # steps
Watch = Callable[[str, int, int], None]  # gets the name of the model, steps done, all steps


@dataclass
class TrainedBaselines:
    """The trained baselines for one task of a run. A training that was killed resumes.

    They are kept in `kept/KEY`. The key is a hash of the run's artifacts and settings, so that a
    changed run gets new baselines. `watch` is called with the progress.
    """

    run: RunDirectory
    task: str
    kept: Path
    watch: Watch = lambda name, done, total: None

    def __post_init__(self) -> None:
        self.states = self.run.align.last_states(self.task)
        self.sampler = HypernetModel.load(self.run.hypernet(), self.task)
        self.config, self.seed = training_of(self.run)
        self.align = self.run.settings("align")["align"]
        parts = [content_hash(self.run.hypernet()), content_hash(self.states)]
        parts += [self.config.model_dump_json(), str(self.seed)]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        self.out = self.kept / name
        self.out.mkdir(parents=True, exist_ok=True)

    def nnit(self, weights: Weights) -> "NNiTOn":
        """NNiT trained on other weights.

        Raises:
            NnitError: `weights` is "matched" and a depth has no reference topology.
        """
        path = self.out / f"nnit-{weights}.safetensors"
        if not path.exists():
            self._train_nnit(self._source(weights), path, f"NNiT on {weights} weights")
        return NNiTOn(NNiTModel.load(path), f"nnit_{weights}")

    def flat(self) -> FlatDiffusion:
        """Flat-vector diffusion with about as many parameters as NNiT, and as many steps."""
        model = NNiTModel.load(self.run.nnit())
        flat = FlatDiffusion(self.sampler, self.config, model.parameters, self.seed)
        path = self.out / "flat.safetensors"
        if path.exists():
            flat.average.load_state_dict(load_file(path))
        else:
            self._train(flat, self.config.steps, path, "flat-vector diffusion")
            write_atomic(path, lambda partial: save_file(flat.average.state_dict(), partial))
        return flat

    def networks(self, weights: Literal["independent", "matched"]) -> MLPBatch:
        """Networks that are trained independently, as they are or permutation-matched.

        Each seen topology has `COPIES` networks for each best teacher. Half of them have exactly
        this topology and imitate that teacher alone. The others have varied widths and imitate
        random mixes, as aligned networks do.

        Raises:
            NnitError: `weights` is "matched" and a depth has no reference topology.
        """
        if weights == "matched":
            _check_references(self.sampler.distribution.seen)
        path = self.out / "independent.safetensors"
        best, rng = self.sampler.current.best, stream("independent.networks", self.seed)
        places = [
            (hidden, copy, teacher)
            for hidden in self.sampler.distribution.seen
            for copy in range(COPIES)
            for teacher in best
        ]
        topologies = [
            self.sampler.vary_widths(hidden, rng) if copy % 2 else self.sampler.topology(hidden)
            for hidden, copy, _ in places
        ]
        teacher_weights = [
            self.sampler.draw_teacher_weights(1, 1.0, rng)[0]
            if copy % 2
            else self.sampler.single_teacher(teacher)
            for _, copy, teacher in places
        ]
        if not path.exists():
            self.watch("independent networks", 0, 1)
            trained = imitate(
                topologies,
                torch.stack(teacher_weights),
                DistillationData.load(self.states),
                INDEPENDENT_STEPS,
                seed=self.seed,
            )
            tensors = {
                f"{i}.{layer}.{name}": value[None].contiguous()
                for i in range(len(trained))
                for layer, pair in enumerate(trained.layers(i))
                for name, value in zip(("weight", "bias"), pair, strict=True)
            }
            write_atomic(path, lambda partial: save_file(tensors, partial))
        tensors = load_file(path)
        networks = MLPBatch.from_layers(
            [
                [
                    (tensors[f"{i}.{layer}.weight"][0], tensors[f"{i}.{layer}.bias"][0])
                    for layer in range(topology.num_layers)
                ]
                for i, topology in enumerate(topologies)
            ]
        )
        return networks if weights == "independent" else _matched(networks)

    def aligned(self, decoder: Literal["mlp", "pointwise"]) -> HypernetModel:
        """A hypernetwork with another decoder, trained on the final states of the run.

        The states include those that the run's own generated networks visited. The measured success
        of teachers is also taken from the run, so that only the decoder differs.
        """
        path = self.out / f"ghn-{decoder}.safetensors"
        if not path.exists():
            known = self.sampler.current
            config = DistillConfig(**self.align["distill"])
            spec = DistillSpec(
                config,
                GHNConfig(**self.align["ghn"] | {"decoder": decoder}),
                self.sampler.distribution,
                [TaskSource(self.task, str(self.states), known.teachers)],
                self.seed,
            )
            distiller = Distiller(spec, torch.device("cpu"))
            self._train(distiller, config.steps, path, f"GHN with {decoder} decoder")
            task = replace(known, latents=distiller.latents_of(0).eval())
            hypernet = replace(self.sampler, ghn=distiller.ghn.eval(), tasks=[task], number=0)
            hypernet.save(path)
        return HypernetModel.load(path)

    def _source(self, weights: Weights) -> AlignedDataset | ListedDataset:
        if weights == "mlp" or weights == "pointwise":
            return AlignedDataset(self.aligned(weights), self.config, self.seed)
        networks = self.networks(weights)
        return ListedDataset(networks, 1.0, self.sampler, self.config, seed=self.seed)

    def _train_nnit(self, source: AlignedDataset | ListedDataset, path: Path, name: str) -> None:
        trainer = Trainer(self.config, source, torch.device("cpu"), self.seed)
        self._train(trainer, self.config.steps, path, name)
        trained_model(trainer, source).save(path)

    def _train(self, trainee: "Trainee", steps: int, path: Path, name: str) -> None:
        """Take all steps; resume from the state beside `path` if a training was killed."""
        saved = path.with_suffix(".partial.pt")
        start = restore_state(trainee.state(), saved) if saved.exists() else 0
        for step in range(start, steps):
            trainee.step(step)
            self.watch(name, step + 1, steps)
            if (step + 1) % SAVE_EVERY == 0:
                save_state(trainee.state(), step + 1, saved)
        saved.unlink(missing_ok=True)


class Trainee(Protocol):
    """A model in training, which can stop and resume between numbered steps."""

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint."""

    def step(self, step: int, /) -> object:
        """Take optimizer step number `step`."""


@dataclass
class NNiTOn:
    """An NNiT as a baseline with its own name."""

    model: NNiTModel
    name: str

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """As `Generator.generate`."""
        policies = self.model.generate(hidden, samples, seed)
        for policy in policies:
            policy.source, policy.id = self.name, policy.id.replace("nnit", self.name, 1)
        return policies


def _matched(networks: MLPBatch) -> MLPBatch:
    """Match every network to the first one of its depth whose layers all have the largest width."""
    hidden = [networks.topology(i).hidden for i in range(len(networks))]
    each = [networks.select([i]) for i in range(len(networks))]
    most = max(map(max, hidden))
    reference: dict[int, MLPBatch] = {}
    for widths, network in zip(hidden, each, strict=True):
        if set(widths) == {most}:
            reference.setdefault(len(widths), network)
    pairs = zip(hidden, each, strict=True)
    return MLPBatch.cat([match(network, reference[len(widths)]) for widths, network in pairs])


def _check_references(seen: list[Hidden]) -> None:
    most = max(max(hidden) for hidden in seen)
    missing = {len(hidden) for hidden in seen} - {len(h) for h in seen if set(h) == {most}}
    if missing:
        raise NnitError(
            f"no seen topology of {min(missing)} layers has all of them {most} wide, so there is "
            "none to match the others to. Use another seed for the split."
        )
