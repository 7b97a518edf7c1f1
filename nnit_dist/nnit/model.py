"""A trained NNiT and its sampler, which writes policies of a given topology."""

import json
import math
import zlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nnit_dist.artifacts.model_file import (
    build,
    described_in,
    part,
    read_model,
    read_normalizer,
    read_record,
    write_model,
)
from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.artifacts.shipped import shipped
from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import one_thread
from nnit_dist.core.storage import path_of
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.nnit.config import DEFAULT_STEPS, TransformerConfig
from nnit_dist.nnit.flow import integrate, unmask
from nnit_dist.nnit.normalizer import TokenNormalizer
from nnit_dist.nnit.packing import Packed, pack
from nnit_dist.nnit.tokens import (
    KINDS,
    ArchitectureVocabulary,
    TokenLayout,
    detokenize,
    token_layout,
)
from nnit_dist.nnit.transformer import NNiT
from nnit_dist.training.sampling import TrainingDistribution

FORMAT = "nnit.model/5"


@dataclass(frozen=True)
class NNiTTask:
    """One task that a model writes policies for, with its normalizers.

    Attributes:
        normalizer: turns networks for normalized observations into ones for raw observations.
        token_normalizer: statistics of the tokens of the task's networks.
        best_success: success_once, in [0, 1], of networks that imitate the task's best teachers.
            The sampler conditions on it by default.
    """

    task: TaskInfo
    normalizer: ObservationNormalizer
    token_normalizer: TokenNormalizer
    best_success: float


@dataclass
class NNiTModel:
    """The network with its tasks; it writes policies for one of them.

    Attributes:
        distribution: the topologies that it was trained on.
        guidable: whether training dropped task and success at times, which guidance needs.
        number: the index in `tasks` of the task that it writes policies for.
    """

    network: NNiT
    config: TransformerConfig
    vocabulary: ArchitectureVocabulary
    tasks: list[NNiTTask]
    distribution: TrainingDistribution
    guidable: bool
    number: int = 0

    @property
    def current(self) -> NNiTTask:
        """The task that it writes policies for."""
        return self.tasks[self.number]

    @property
    def task(self) -> TaskInfo:
        """Name and sizes of the task that it writes policies for."""
        return self.current.task

    @property
    def best_success(self) -> float:
        """The success_once that policies are conditioned on by default, in [0, 1]."""
        return self.current.best_success

    def for_task(self, task: str) -> "NNiTModel":
        """The same network, set to write policies for `task`.

        Raises:
            NnitError: the network was not trained for this task.
        """
        self.vocabulary.check_task(task)
        return replace(self, number=self.vocabulary.tasks.index(task))

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.network.parameters())

    def check(
        self,
        hidden: Hidden,
        success: float | None = None,
        guidance: float = 0.0,
    ) -> None:
        """Raise NnitError if this model cannot write `hidden` with this success and guidance."""
        self.vocabulary.encode(self.task.name, hidden)
        if success is not None and not 0 <= success <= 1:
            raise NnitError(f"a success lies between 0 and 1; got {success}.")
        if not 0 <= guidance < math.inf:
            raise NnitError(f"guidance is a finite number, at least 0 (none); got {guidance}.")
        if guidance and not self.guidable:
            raise NnitError(
                "this model was trained with nnit.condition_dropout=0, so it cannot be guided. "
                "Leave guidance out, or train with nnit.condition_dropout=0.1."
            )

    @one_thread()
    @torch.no_grad()
    def generate(
        self,
        hidden: Hidden,
        samples: int,
        seed: int = 0,
        steps: int = DEFAULT_STEPS,
        *,
        first: int = 0,
        success: float | None = None,
        guidance: float = 0.0,
    ) -> list[Policy]:
        """Write `samples` policies of one topology.

        Sample k depends only on (seed, topology, k), `steps`, `success` and `guidance`, not on the
        other samples or on the number of cores.

        Args:
            first: number of the first sample.
            steps: steps of the sampler.
            success: success_once to condition on, in [0, 1]; `best_success` by default.
            guidance: strength of classifier-free guidance (arXiv 2207.12598); 0 is none.

        Raises:
            NnitError: the topology or `success` is out of range, or the model cannot be guided.
        """
        self.check(hidden, success=success, guidance=guidance)
        topology = Topology(self.task.obs_dim, hidden, self.task.act_dim)
        layout = token_layout(topology, self.vocabulary.patch)
        asked = self.best_success if success is None else success
        predict = partial(self._predict, self._packings(layout), asked, guidance)
        numbers = range(first, first + samples)
        if not numbers:
            return []
        noises = (self._noise(topology, seed, number, layout) for number in numbers)
        values = torch.stack([integrate(predict, noise * layout.mask, steps) for noise in noises])
        networks = detokenize(self.current.token_normalizer.denormalize(values, layout), layout)
        how = {"steps": str(steps), "asked_success": str(asked)}
        return networks.to_policies(
            task=self.task,
            source="nnit",
            ids=[f"nnit_{topology.name}_{seed}_{number}" for number in numbers],
            normalizer=self.current.normalizer,
            metadata=[{"seed": str(seed), "sample": str(number)} | how for number in numbers],
        )

    @one_thread()
    @torch.no_grad()
    def draw_architectures(
        self, count: int, seed: int = 0, success: float | None = None
    ) -> list[Hidden]:
        """Draw `count` architectures from the model's own distribution, by masked diffusion.

        They are conditioned on `success`, by default `best_success`. Draws that form no valid
        architecture are left out, so there may be fewer.

        Raises:
            NnitError: `success` is not within 0 and 1.
        """
        self.check(self.distribution.seen[0], success)
        generator = torch.Generator().manual_seed(seed)
        vocabulary, time = self.vocabulary, torch.zeros(count)
        asked = torch.full((count,), self.best_success if success is None else success)

        def predict(ids: Tensor) -> Tensor:
            packed = pack(ids.tolist(), [None] * count, [None] * count, vocabulary.max_width)
            rate = (ids == vocabulary.mask).float().mean(1)
            nothing = torch.zeros(0, vocabulary.patch**2)
            return self.network(packed, nothing, time, rate, asked)[1].unflatten(0, (count, -1))

        masked = torch.full((count, vocabulary.slots), vocabulary.mask)
        masked[:, 0] = vocabulary.encode(self.task.name, self.distribution.seen[0])[0]
        ids = unmask(predict, masked, vocabulary.mask, vocabulary.drawable(), generator=generator)
        decoded = [vocabulary.decode(row) for row in ids.tolist()]
        return [architecture[1] for architecture in decoded if architecture is not None]

    def _packings(self, layout: TokenLayout) -> tuple[Packed, Packed]:
        """The packed sequence of one network, with its task and with the task masked."""
        ids = self.vocabulary.encode(self.task.name, layout.topology.hidden)
        condition = [self._condition(layout.topology)]
        asked, any_task = (
            pack([[task, *ids[1:]]], [layout], condition, self.vocabulary.max_width)
            for task in (ids[0], self.vocabulary.mask)
        )
        return asked, any_task

    def _condition(self, topology: Topology) -> ConditioningShape:
        """The conditioning shape of a topology: its true shape, up to the largest of training.

        For twenty wider topologies on PushCube-v1, success_once was 0.86 with this limit and 0.77
        with the true shapes.
        """
        widths = (min(width, self.vocabulary.max_width) for width in topology.hidden)
        depth = min(topology.depth, self.vocabulary.max_depth)
        return ConditioningShape((topology.obs_dim, *widths, topology.act_dim), depth)

    def _predict(
        self,
        packings: tuple[Packed, Packed],
        success: float,
        guidance: float,
        x_NP: Tensor,
        time: float,
    ) -> Tensor:
        """Predict the clean patches [N, P] of one network, with guidance."""
        asked, any_task = packings
        level, zero = torch.full((1,), time), torch.zeros(1)
        clean = self.network(asked, x_NP, level, zero, torch.full((1,), success))[0]
        if guidance:
            anyhow = self.network(any_task, x_NP, level, zero, torch.full((1,), math.nan))[0]
            clean = clean + guidance * (clean - anyhow)
        return clean * asked.mask_MP

    def _noise(self, topology: Topology, seed: int, number: int, layout: TokenLayout) -> Tensor:
        key = zlib.crc32(f"{seed}/{topology.name}/{number}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.randn(layout.mask.shape, generator=generator)

    def save(self, path: Path) -> Path:
        """Write the model as one safetensors file; weights are float16."""
        network = self.network.state_dict().items()
        tensors = {f"network.{k}": v.half().contiguous() for k, v in network}
        tokens = [known.token_normalizer for known in self.tasks]
        tensors |= {
            "token_normalizer.mean": torch.stack([normalizer.mean for normalizer in tokens]),
            "token_normalizer.std": torch.stack([normalizer.std for normalizer in tokens]),
        }
        for i, known in enumerate(self.tasks):
            tensors[f"norm.{i}.mean"] = torch.from_numpy(known.normalizer.mean)
            tensors[f"norm.{i}.std"] = torch.from_numpy(known.normalizer.std)
        vocabulary = self.vocabulary
        tasks = [{"task": asdict(k.task), "best_success": k.best_success} for k in self.tasks]
        metadata = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config)),
            "vocabulary": json.dumps(
                [vocabulary.tasks, vocabulary.patch, vocabulary.max_width, vocabulary.max_depth]
            ),
            "tasks": json.dumps(tasks),
            **self.distribution.metadata(),
            "guidable": json.dumps(self.guidable),
        }
        return write_model(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> "NNiTModel":
        """Read a model that `save` wrote.

        Raises:
            NnitError: the file is not such a model, or its weights do not fit its configuration.
        """
        tensors, metadata = read_model(path, FORMAT)
        with described_in(path):
            sizes = tuple(json.loads(metadata["vocabulary"]))
            vocabulary = ArchitectureVocabulary(
                *read_record(tuple[list[str], int, int, int], sizes)
            )
            config = read_record(TransformerConfig, json.loads(metadata["config"]))
            network = build(
                lambda: NNiT(config, vocabulary, vocabulary.patch), part(tensors, "network.")
            )
            return cls(
                network.eval(),
                config,
                vocabulary,
                _read_tasks(json.loads(metadata["tasks"]), vocabulary, tensors),
                TrainingDistribution.read(metadata),
                bool(json.loads(metadata["guidable"])),
            )


def _read_tasks(
    tasks: list[dict], vocabulary: ArchitectureVocabulary, tensors: dict[str, Tensor]
) -> list[NNiTTask]:
    if [known["task"]["name"] for known in tasks] != vocabulary.tasks or not tasks:
        raise ValueError(f"it names {len(tasks)} tasks and has tokens for {vocabulary.tasks}")
    mean, std = tensors["token_normalizer.mean"], tensors["token_normalizer.std"]
    if mean.dim() == 1:  # older files have one normalizer for all tasks
        mean, std = mean.expand(len(tasks), -1), std.expand(len(tasks), -1)
    if mean.shape != std.shape or mean.shape != (len(tasks), KINDS):
        raise ValueError(f"its token normalizer is {list(mean.shape)}, {list(std.shape)}")
    if not all(0 <= known["best_success"] <= 1 for known in tasks):
        raise ValueError("a success is not within 0 and 1")
    return [
        NNiTTask(
            read_record(TaskInfo, known["task"]),
            read_normalizer(tensors, i, known["task"]["obs_dim"]),
            TokenNormalizer(mean[i].clone(), std[i].clone()),
            float(known["best_success"]),
        )
        for i, known in enumerate(tasks)
    ]


def load_model(task: str, path: Path | str | None = None) -> NNiTModel:
    """Load the NNiT of a task from a model file, a run directory, or by default the shipped run.

    Raises:
        NnitError: there is no model there, or it was not trained for the task.
    """
    path = shipped(task).nnit() if path is None else path_of(path)
    if path.is_dir():
        path = RunDirectory(path).nnit()
    return NNiTModel.load(path).for_task(task)
