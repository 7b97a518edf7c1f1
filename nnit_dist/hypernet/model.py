"""A trained hypernetwork, which writes policies of a topology that imitate a mix of teachers.

One hypernetwork serves several tasks. A model writes policies for one of them at a time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import one_thread, stream
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents, draw_teacher_weights
from nnit_dist.training.sampling import TrainingDistribution

FORMAT = "nnit.ghn/6"


@dataclass(frozen=True)
class Teacher:
    """A policy that the hypernetwork imitates; `best` marks the best snapshot of a trial."""

    id: str
    best: bool


@dataclass
class HypernetTask:
    """One task of the hypernetwork, with its normalizer, teachers and latents.

    Attributes:
        normalizer: turns networks for normalized observations into ones for raw observations.
        success: measured success_once in [0, 1] of networks that imitate each teacher, float32
            [teachers]. All best teachers have the mean success of networks that imitate mixes of
            them.
    """

    task: TaskInfo
    normalizer: ObservationNormalizer
    latents: TeacherLatents
    teachers: list[Teacher]
    success: Tensor

    @property
    def best(self) -> list[int]:
        """Indices of the teachers that are the best of their trial."""
        return [i for i, teacher in enumerate(self.teachers) if teacher.best]


@dataclass
class HypernetModel:
    """The hypernetwork with its tasks; it writes policies for one of them.

    Attributes:
        distribution: the topologies that it was trained on.
        max_teachers_per_mix: how many of the best teachers a network imitates at most.
        number: the index in `tasks` of the task that it writes policies for.
    """

    ghn: GHN
    tasks: list[HypernetTask]
    distribution: TrainingDistribution
    max_teachers_per_mix: int
    number: int = 0

    @property
    def current(self) -> HypernetTask:
        """The task that it writes policies for."""
        return self.tasks[self.number]

    @property
    def task(self) -> TaskInfo:
        """Name and sizes of the task that it writes policies for."""
        return self.current.task

    def for_task(self, task: str) -> "HypernetModel":
        """The same hypernetwork, set to write policies for `task`.

        Raises:
            NnitError: the hypernetwork was not trained for this task.
        """
        names = [known.task.name for known in self.tasks]
        if task not in names:
            raise NnitError(
                f"the hypernetwork writes policies for {', '.join(names)}, not for {task}."
            )
        return replace(self, number=names.index(task))

    def each_task(self) -> list["HypernetModel"]:
        """The same hypernetwork as a model for each of its tasks."""
        return [replace(self, number=number) for number in range(len(self.tasks))]

    @property
    def parameters(self) -> int:
        """Number of parameters of the hypernetwork."""
        return sum(p.numel() for p in self.ghn.parameters())

    def writes(self, hidden: Hidden) -> bool:
        """Whether all hidden layers are narrow enough for the hypernetwork."""
        return max(hidden) <= self.distribution.max_width

    def topology(self, hidden: Hidden) -> Topology:
        """The topology of the task's policies with these hidden widths."""
        return Topology(self.task.obs_dim, hidden, self.task.act_dim)

    def vary_widths(self, hidden: Hidden, rng: torch.Generator) -> Topology:
        """A topology near a seen one, drawn as in training."""
        return self.distribution.vary(self.topology(hidden), rng)

    def draw_teacher_weights(self, count: int, best_share: float, rng: torch.Generator) -> Tensor:
        """Draw mixes of teachers as in training, float32 [count, teachers]."""
        best = torch.tensor([teacher.best for teacher in self.current.teachers])
        return draw_teacher_weights(best, count, best_share, self.max_teachers_per_mix, rng=rng)

    def single_teacher(self, teacher: int) -> Tensor:
        """The mix that is one teacher alone, float32 [teachers]."""
        weights = torch.zeros(len(self.current.teachers))
        weights[teacher] = 1
        return weights

    @torch.no_grad()
    def networks(
        self,
        topologies: list[Topology],
        teacher_weights: Tensor,
        generators: list[torch.Generator],
        conditions: list[ConditioningShape] | None = None,
    ) -> MLPBatch:
        """Write a network of each topology that imitates its mix of teachers, of [B, teachers].

        Each latent is drawn around the mean of the mix, from its own generator. `conditions` are
        the shapes that the hypernetwork is conditioned on, by default the true ones.
        """
        mixes = zip(teacher_weights, generators, strict=True)
        z = torch.stack([self.draw_latent(weights, rng) for weights, rng in mixes])
        return self.write(topologies, z, conditions, [self.number] * len(topologies))

    @torch.no_grad()
    def write(
        self,
        topologies: list[Topology],
        z: Tensor,
        conditions: list[ConditioningShape] | None,
        tasks: list[int],
    ) -> MLPBatch:
        """Write a network of each topology, on the CPU, from its latent, of z [B, latent_dim].

        `tasks` has the index of each network's task.
        """
        return self.ghn(list(zip(topologies, z[:, None], strict=True)), conditions, tasks).to("cpu")

    @torch.no_grad()
    def draw_latent(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """Draw a latent [latent_dim] for a mix of teachers [teachers]."""
        latents = self.current.latents
        noise = torch.randn(latents.mean.shape[1], generator=rng)
        return latents.sample(weights.to(latents.mean), noise.to(latents.mean))

    def to(self, device: torch.device) -> "HypernetModel":
        """Move the hypernetwork to a device; the networks that it writes are still on the CPU."""
        self.ghn.to(device)
        for task in self.tasks:
            task.latents.to(device)
        return self

    @one_thread()
    def policies(
        self, hidden: Hidden, count: int, seed: int, weights: Tensor | None = None
    ) -> list[Policy]:
        """Write `count` policies of one topology that imitate a mix of teachers [teachers].

        By default each imitates a random mix of the best teachers. Policy k depends only on (seed,
        topology, mix, k), apart from rounding errors.

        Raises:
            NnitError: a layer is too wide for the hypernetwork.
        """
        if not self.writes(hidden):
            raise NnitError(
                f"the hypernetwork writes layers up to {self.distribution.max_width} wide."
            )
        topology = self.topology(hidden)
        rngs = [stream("hypernet.policies", seed, number, *hidden) for number in range(count)]
        mixes = [
            self.draw_teacher_weights(1, 1.0, rng)[0] if weights is None else weights
            for rng in rngs
        ]
        networks = self.networks([topology] * count, torch.stack(mixes), rngs)
        return networks.to_policies(
            task=self.task,
            source="ghn",
            ids=[f"ghn_{topology.name}_{seed}_{number}" for number in range(count)],
            normalizer=self.current.normalizer,
            metadata=[{"teacher_weights": self._named(mix)} for mix in mixes],
        )

    def _named(self, weights: Tensor) -> str:
        """The teachers of a mix and their shares, as JSON."""
        teachers = self.current.teachers
        shares = {teachers[i].id: round(float(weights[i]), 3) for i in weights.nonzero().flatten()}
        return json.dumps(shares)

    def save(self, path: Path) -> Path:
        """Write the model with all tasks as one safetensors file."""
        tensors = {f"ghn.{k}": v.contiguous() for k, v in self.ghn.state_dict().items()}
        for i, known in enumerate(self.tasks):
            tensors |= {f"latents.{i}.{k}": v for k, v in known.latents.state_dict().items()}
            tensors |= {
                f"norm.{i}.mean": torch.from_numpy(known.normalizer.mean),
                f"norm.{i}.std": torch.from_numpy(known.normalizer.std),
                f"success.{i}": known.success,
            }
        tasks = [
            {"task": asdict(known.task), "teachers": [asdict(t) for t in known.teachers]}
            for known in self.tasks
        ]
        metadata = {
            "format": FORMAT,
            "config": self.ghn.config.model_dump_json(),
            "tasks": json.dumps(tasks),
            **self.distribution.metadata(),
            "max_teachers_per_mix": str(self.max_teachers_per_mix),
        }
        return write_model(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, task: str | None = None) -> "HypernetModel":
        """Read a model that `save` wrote, for one of its tasks, by default the first.

        Raises:
            NnitError: the file is not such a model, or the model does not have the task.
        """
        tensors, metadata = read_model(path, FORMAT)
        with described_in(path):
            config = GHNConfig.model_validate_json(metadata["config"])
            distribution = TrainingDistribution.read(metadata)
            tasks = [
                _read_task(known, tensors, i, config.latent_dim)
                for i, known in enumerate(json.loads(metadata["tasks"]))
            ]
            infos = [known.task for known in tasks]
            ghn = build(
                lambda: build_ghn(config, infos, distribution.max_width), part(tensors, "ghn.")
            )
            mixes = int(metadata["max_teachers_per_mix"])
            if mixes < 1 or not tasks:
                raise ValueError(f"it has {len(tasks)} tasks and mixes of {mixes} teachers")
            model = cls(ghn.eval(), tasks, distribution, mixes)
        return model.for_task(task) if task else model


def _read_task(
    described: dict[str, Any], tensors: dict[str, Tensor], number: int, latent_dim: int
) -> HypernetTask:
    teachers = read_record(list[Teacher], described["teachers"])
    task = read_record(TaskInfo, described["task"])
    success = tensors[f"success.{number}"]
    known = success.shape == (len(teachers),) and success.is_floating_point()
    if not (known and ((success >= 0) & (success <= 1)).all() and teachers):
        raise ValueError(f"success.{number} is no success of each of {len(teachers)} teachers")
    latents = build(
        lambda: TeacherLatents(len(teachers), latent_dim), part(tensors, f"latents.{number}.")
    )
    normalizer = read_normalizer(tensors, number, task.obs_dim)
    return HypernetTask(task, normalizer, latents.eval(), teachers, success)


def build_ghn(config: GHNConfig, tasks: Sequence[TaskInfo], max_width: int) -> GHN:
    """An untrained hypernetwork for these tasks."""
    obs_dim, act_dim = max(t.obs_dim for t in tasks), max(t.act_dim for t in tasks)
    return GHN(config, obs_dim, act_dim, max_width, tasks=len(tasks))
