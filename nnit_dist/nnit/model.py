"""A trained NNiT and its sampler: topology in, working policies out."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from nnit_dist.align.sampler import read_model
from nnit_dist.artifacts import canonical_safetensors, write_atomic
from nnit_dist.envs.tasks import TaskInfo
from nnit_dist.errors import NnitError
from nnit_dist.nnit.diffusion import integrate, unmask
from nnit_dist.nnit.tokens import (
    KINDS,
    ArchitectureVocabulary,
    TokenLayout,
    detokenize,
    token_layout,
)
from nnit_dist.nnit.transformer import NNiT, TransformerConfig
from nnit_dist.normalization import InputNorm
from nnit_dist.policy import Policy
from nnit_dist.topology import Hidden, Topology

FORMAT = "nnit.model/1"
# Success on 24 unseen topologies of PushCube-v1: 0.927 in 8 steps and more, 0.921 in 4, 0.906 in 2.
DEFAULT_STEPS = 4


@dataclass
class Whitening:
    """Mean and standard deviation of weights per kind of token, float32 [KINDS]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, samples: list[tuple[Tensor, TokenLayout]]) -> "Whitening":
        """From (values [B, N, P], layout) pairs; padding does not count."""
        values: list[list[Tensor]] = [[] for _ in range(KINDS)]
        for tokens, layout in samples:
            for kind in range(KINDS):
                is_kind = layout.kind == kind
                values[kind].append(tokens[:, is_kind][:, layout.mask[is_kind] > 0].flatten())
        joined = [torch.cat(parts) if parts else torch.zeros(1) for parts in values]
        mean = torch.stack([v.mean() if len(v) else torch.zeros(()) for v in joined])
        std = torch.stack([v.std() if len(v) > 1 else torch.ones(()) for v in joined])
        return cls(mean, std.clamp(min=1e-6))

    def whiten(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """Values [B, N, P] to zero mean and unit spread; padding becomes 0."""
        kind = layout.kind.to(values.device)
        white = (values - self.mean[kind, None]) / self.std[kind, None]
        return white * layout.mask.to(values.device)

    def colour(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """Inverse of `whiten` on everything that is not padding."""
        kind = layout.kind.to(values.device)
        return values * self.std[kind, None] + self.mean[kind, None]

    def to(self, device: torch.device) -> "Whitening":
        return Whitening(self.mean.to(device), self.std.to(device))


@dataclass
class NNiTModel:
    """The network with all that turns its samples into policies."""

    network: NNiT
    config: TransformerConfig
    vocabulary: ArchitectureVocabulary
    whitening: Whitening
    norm: InputNorm
    task: TaskInfo
    seen: list[Hidden]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def check(self, hidden: Hidden, task: str | None = None) -> None:
        """Raise NnitError unless this model can write `hidden` for `task`."""
        self.vocabulary.encode(task or self.task.name, hidden)

    @torch.no_grad()
    def generate(
        self,
        hidden: Hidden,
        samples: int,
        seed: int = 0,
        steps: int = DEFAULT_STEPS,
        first: int = 0,
    ) -> list[Policy]:
        """`samples` policies of one topology.

        Sample k depends on (seed, topology, k) alone, whatever else is generated with it;
        `first` is the number of the first one.

        Raises:
            NnitError: the topology is out of this model's range.
        """
        ids = torch.tensor(self.vocabulary.encode(self.task.name, hidden))
        topology = Topology(self.task.obs_dim, hidden, self.task.act_dim)
        layout = token_layout(topology, self.vocabulary.patch)
        numbers = range(first, first + samples)
        noise = torch.stack([self._noise(topology, seed, number, layout) for number in numbers])
        batch = ids.expand(samples, -1)

        def predict(x: Tensor, time: float) -> Tensor:
            # One sample at a time: a batched product may round differently with its size.
            rows = [
                self.network(batch[:1], torch.full((1,), time), row[None], layout)[0] for row in x
            ]
            return torch.cat(rows) * layout.mask

        values = integrate(predict, noise * layout.mask, steps)
        layers = detokenize(self.whitening.colour(values, layout), layout)
        return [
            Policy(
                topology,
                self.norm.fold([(w[i].numpy(), b[i].numpy()) for w, b in layers]),
                self.task.name,
                "nnit",
                self.task.control_mode,
                f"nnit_{topology.name}_{seed}_{number}",
                {"seed": str(seed), "sample": str(number), "steps": str(steps)},
            )
            for i, number in enumerate(numbers)
        ]

    @torch.no_grad()
    def draw_architectures(self, count: int, seed: int = 0) -> list[Hidden]:
        """`count` architectures from the model's own distribution (masked diffusion)."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.full((count, self.vocabulary.slots), self.vocabulary.mask)
        time = torch.zeros(count)
        ids = unmask(
            lambda masked: self.network(masked, time, None, None)[1],
            ids,
            self.vocabulary.mask,
            self.vocabulary.allowed(),
            generator,
        )
        decoded = [self.vocabulary.decode(row) for row in ids.tolist()]
        return [architecture[1] for architecture in decoded if architecture is not None]

    def _noise(self, topology: Topology, seed: int, number: int, layout: TokenLayout) -> Tensor:
        key = zlib.crc32(f"{seed}/{topology.name}/{number}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.randn(layout.mask.shape, generator=generator)

    def save(self, path: Path) -> Path:
        """Write one safetensors file."""
        state = {f"network.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        state |= {
            "whitening.mean": self.whitening.mean,
            "whitening.std": self.whitening.std,
            "norm.mean": torch.from_numpy(self.norm.mean),
            "norm.std": torch.from_numpy(self.norm.std),
        }
        vocabulary = self.vocabulary
        metadata = {
            "format": FORMAT,
            "config": self.config.model_dump_json(),
            "vocabulary": json.dumps(
                [vocabulary.tasks, vocabulary.patch, vocabulary.max_width, vocabulary.max_depth]
            ),
            "task": json.dumps(vars(self.task)),
            "seen": json.dumps(self.seen),
        }
        data = canonical_safetensors(save(state, metadata))
        return write_atomic(path, lambda partial: partial.write_bytes(data))

    @classmethod
    def load(cls, path: Path) -> "NNiTModel":
        """Read what `save` wrote; NnitError if it is something else."""
        metadata, state = read_model(path, FORMAT)
        vocabulary = ArchitectureVocabulary(*json.loads(metadata["vocabulary"]))
        config = TransformerConfig.model_validate_json(metadata["config"])
        network = NNiT(config, vocabulary, vocabulary.patch)
        try:
            network.load_state_dict(
                {
                    k.removeprefix("network."): v
                    for k, v in state.items()
                    if k.startswith("network.")
                }
            )
        except RuntimeError as error:
            raise NnitError(f"{path} does not hold the network it describes: {error}") from None
        return cls(
            network.eval(),
            config,
            vocabulary,
            Whitening(state["whitening.mean"], state["whitening.std"]),
            InputNorm(state["norm.mean"].numpy(), state["norm.std"].numpy()),
            TaskInfo(**json.loads(metadata["task"])),
            [tuple(hidden) for hidden in json.loads(metadata["seen"])],
        )
