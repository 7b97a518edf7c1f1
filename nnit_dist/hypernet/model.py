"""The aligned sampler: a trained hypernetwork as a source of policies for any topology.

One hypernetwork serves several tasks, and a sampler one of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors, write_atomic
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import generator_of, one_thread
from nnit_dist.core.storage import local_file
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.ghn import GHN
from nnit_dist.hypernet.latents import TeacherLatents, draw_teacher_weights
from nnit_dist.training.sampling import vary_widths

FORMAT = "nnit.ghn/5"


@dataclass(frozen=True)
class Teacher:
    """A policy that the hypernetwork learnt from; `best`: the best snapshot of its trial."""

    id: str
    best: bool


@dataclass
class HypernetModel:
    """(topology, latent) -> weights of one task. `norm` folds networks to raw observations.

    `number` is the task's place among those of the hypernetwork.
    In training the widths of the `seen` topologies were varied by up to `variation` units, and
    networks were after `blended` of the best teachers at once (`latents.draw_mixes`).
    `success` is the measured success_once of networks after each teacher, float32 [teachers];
    of those after the best, of mixes of them. Networks come in tensors, for normalized
    observations (`networks`), or as policies (`policies`).
    """

    ghn: GHN
    latents: TeacherLatents
    norm: ObservationNormalizer
    task: TaskInfo
    max_width: int
    seen: list[tuple[int, ...]]
    variation: int
    max_teachers_per_mix: int
    teachers: list[Teacher]
    success: Tensor
    number: int = 0

    @property
    def best(self) -> list[int]:
        """Indices of the teachers that are the best of their trial."""
        return [i for i, teacher in enumerate(self.teachers) if teacher.best]

    def writes(self, hidden: tuple[int, ...]) -> bool:
        """Whether the hypernetwork writes layers as wide as these."""
        return max(hidden) <= self.max_width

    def topology(self, hidden: tuple[int, ...]) -> Topology:
        return Topology(self.task.obs_dim, hidden, self.task.act_dim)

    def vary_widths(self, hidden: tuple[int, ...], rng: torch.Generator) -> Topology:
        """A topology near a seen one, as training has them."""
        return vary_widths(self.topology(hidden), self.variation, self.max_width, rng)

    def draw_teacher_weights(self, count: int, best_share: float, rng: torch.Generator) -> Tensor:
        """Mixes of teachers as training has them, float32 [count, teachers]."""
        best = torch.tensor([teacher.best for teacher in self.teachers])
        return draw_teacher_weights(best, count, best_share, self.max_teachers_per_mix, rng)

    def pure(self, teacher: int) -> Tensor:
        """The mix that is one teacher alone, float32 [teachers]."""
        mix = torch.zeros(len(self.teachers))
        mix[teacher] = 1
        return mix

    @torch.no_grad()
    def networks(
        self,
        topologies: list[Topology],
        teacher_weights: Tensor,
        generators: list[torch.Generator],
        condition: list[ConditioningShape] | None = None,
    ) -> MLPBatch:
        """A network of each topology after each mix of teachers [B, teachers].

        Latents are drawn around the mix's, each from its own generator. `condition` is what the
        hypernetwork is conditioned on, see `GHN.forward`.
        """
        z = [
            self.draw_latent(mix, rng) for mix, rng in zip(teacher_weights, generators, strict=True)
        ]
        tasks = [self.number] * len(topologies)
        return write_networks(self.ghn, topologies, torch.stack(z), condition, tasks)

    @torch.no_grad()
    def draw_latent(self, mix: Tensor, rng: torch.Generator) -> Tensor:
        """A latent [latent_dim] around that of a mix of teachers [teachers]."""
        noise = torch.randn(self.latents.mean.shape[1], generator=rng)
        return self.latents.sample(mix.to(self.latents.mean), noise.to(self.latents.mean))

    def to(self, device: torch.device) -> "HypernetModel":
        """The same, written on a device; `networks` still gives CPU tensors."""
        self.ghn.to(device)
        self.latents.to(device)
        return self

    @one_thread()
    def policies(
        self, hidden: Hidden, count: int, seed: int, mix: Tensor | None = None
    ) -> list[Policy]:
        """`count` policies of one topology, after `mix` or each after a mix of the best teachers.

        Policy k depends on (seed, topology, mix, k) alone, but for rounding.

        Raises:
            NnitError: a layer is wider than the hypernetwork writes.
        """
        if not self.writes(hidden):
            raise NnitError(f"the hypernetwork writes layers up to {self.max_width}.")
        topology = self.topology(hidden)
        rngs = [generator_of(seed, number, *hidden) for number in range(count)]
        teacher_weights = [
            self.draw_teacher_weights(1, 1.0, rng)[0] if mix is None else mix for rng in rngs
        ]
        networks = self.networks([topology] * count, torch.stack(teacher_weights), rngs)
        return networks.to_policies(
            task=self.task,
            source="ghn",
            ids=[f"ghn_{topology.name}_{seed}_{number}" for number in range(count)],
            normalizer=self.norm,
            metadata=[{"mix": self._named(weights)} for weights in teacher_weights],
        )

    def _named(self, mix: Tensor) -> str:
        """The teachers of a mix and their shares, as JSON."""
        shares = {self.teachers[i].id: round(float(mix[i]), 3) for i in mix.nonzero().flatten()}
        return json.dumps(shares)

    def save(self, path: Path) -> Path:
        """Write one safetensors file; see `save_samplers` for several tasks."""
        return save_samplers([self], path)

    @classmethod
    def load(cls, path: Path, task: str | None = None) -> "HypernetModel":
        """The sampler of a task, the first by default, of a file.

        Raises:
            NnitError: the file is something else, or has no such task.
        """
        samplers = load_samplers(path)
        names = [sampler.task.name for sampler in samplers]
        if task is not None and task not in names:
            raise NnitError(f"{path} writes policies for {', '.join(names)}, not for {task}.")
        return samplers[names.index(task) if task else 0]


@torch.no_grad()
def write_networks(
    ghn: GHN,
    topologies: list[Topology],
    z: Tensor,
    condition: list[ConditioningShape] | None,
    tasks: list[int],
) -> MLPBatch:
    """A network of each topology from each latent [B, latent_dim], on the CPU."""
    return ghn(list(zip(topologies, z[:, None], strict=True)), condition, tasks).to("cpu")


def save_samplers(samplers: Sequence[HypernetModel], path: Path) -> Path:
    """Write the samplers of all tasks of one hypernetwork as one safetensors file."""
    first = samplers[0]
    state = {f"ghn.{k}": v.contiguous() for k, v in first.ghn.state_dict().items()}
    for i, sampler in enumerate(samplers):
        state |= {f"latents.{i}.{k}": v for k, v in sampler.latents.state_dict().items()}
        state |= {
            f"norm.{i}.mean": torch.from_numpy(sampler.norm.mean),
            f"norm.{i}.std": torch.from_numpy(sampler.norm.std),
            f"success.{i}": sampler.success,
        }
    tasks = [
        {
            "task": vars(s.task),
            "teachers": [vars(t) for t in s.teachers],
        }
        for s in samplers
    ]
    metadata = {
        "format": FORMAT,
        "config": first.ghn.config.model_dump_json(),
        "tasks": json.dumps(tasks),
        "max_width": str(first.max_width),
        "seen": json.dumps(first.seen),
        "variation": str(first.variation),
        "blended": str(first.max_teachers_per_mix),
    }
    data = canonical_safetensors(save(state, metadata))
    return write_atomic(path, lambda partial: partial.write_bytes(data))


def load_samplers(path: Path) -> list[HypernetModel]:
    """Read what `save_samplers` wrote; NnitError if it is something else."""
    metadata, state = read_model(path, FORMAT)
    tasks = json.loads(metadata["tasks"])
    infos = [TaskInfo(**about["task"]) for about in tasks]
    config, max_width = (
        GHNConfig.model_validate_json(metadata["config"]),
        int(metadata["max_width"]),
    )
    ghn = build_ghn(config, infos, max_width)
    ghn.load_state_dict(_part(state, "ghn."))
    samplers = []
    for i, (info, about) in enumerate(zip(infos, tasks, strict=True)):
        latents = TeacherLatents(len(about["teachers"]), config.latent_dim)
        latents.load_state_dict(_part(state, f"latents.{i}."))
        samplers.append(
            HypernetModel(
                ghn.eval(),
                latents.eval(),
                ObservationNormalizer(
                    state[f"norm.{i}.mean"].numpy(), state[f"norm.{i}.std"].numpy()
                ),
                info,
                max_width,
                [tuple(hidden) for hidden in json.loads(metadata["seen"])],
                int(metadata["variation"]),
                int(metadata["blended"]),
                [Teacher(**teacher) for teacher in about["teachers"]],
                state[f"success.{i}"],
                i,
            )
        )
    return samplers


def build_ghn(config: GHNConfig, tasks: Sequence[TaskInfo], max_width: int) -> GHN:
    """An untrained hypernetwork for these tasks."""
    obs_dim, act_dim = max(t.obs_dim for t in tasks), max(t.act_dim for t in tasks)
    return GHN(config, obs_dim, act_dim, max_width, len(tasks))


def read_model(path: Path, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a model file.

    Raises:
        NnitError: it is missing, damaged, or of another format.
    """
    try:
        with local_file(path) as local, safe_open(str(local), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NnitError(f"there is no model file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise NnitError(f"{path} is not a readable model file ({error}).") from None
    if metadata.get("format") != expected:
        raise NnitError(
            f"{path} has format {metadata.get('format', 'none')!r}; expected {expected!r}."
        )
    return metadata, state


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
