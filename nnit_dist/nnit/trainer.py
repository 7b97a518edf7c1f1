"""The trainer of NNiT: corrupt examples, pack them, predict the clean ones, take an optimizer step.

The examples of a step are numbered over all workers. Example i depends on (seed, step, i) alone. So
the gradient does not depend on the number of workers, nor on `accumulate`, the number of parts in
which a worker computes its share.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.rng import stream
from nnit_dist.nnit.flow import flow_loss, mask_ids, masked_loss, noised, sample_time
from nnit_dist.nnit.packing import Packed, pack
from nnit_dist.nnit.tokens import ArchitectureVocabulary, TokenLayout
from nnit_dist.nnit.transformer import NNiT
from nnit_dist.training.optimizer import (
    AverageGradients,
    average_with_losses,
    learning_rate,
    set_learning_rate,
)

if TYPE_CHECKING:
    from nnit_dist.nnit.config import NNiTConfig

ROW_MULTIPLE = 64  # of tokens
WARMUP = 50  # steps in which the learning rate rises


@dataclass
class Example:
    """A network as a sequence, or an architecture without weights, layout and condition.

    `ids` are architecture tokens, `x` normalized patches [N, P], `success` the success_once in
    [0, 1], and `condition` the shape that the transformer is conditioned on.
    """

    ids: list[int]
    success: float
    layout: TokenLayout | None = None
    condition: ConditioningShape | None = None
    x: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens of the sequence."""
        return len(self.ids) + (self.layout.length if self.layout else 0)


class Dataset(Protocol):
    """A source of examples, which gives the same ones for the same (step, numbers)."""

    vocabulary: ArchitectureVocabulary

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """The examples of a step with these numbers."""


@dataclass
class Corrupted:
    """Packed examples with noise on their patches and masks on their architecture tokens.

    Inputs of the network are `packed`, `x_t` [M, P], `time` [S], `rate` [S] and `success` [S].
    Targets are the clean patches `x` [M, P], and the clean `ids` [A] of tokens that are masked
    according to `hidden`, bool [A].
    """

    packed: Packed
    x_t: Tensor
    time: Tensor
    rate: Tensor
    success: Tensor
    x: Tensor
    ids: Tensor
    hidden: Tensor

    def to(self, device: torch.device) -> "Corrupted":
        """The same examples on a device."""
        return Corrupted(**{name: part.to(device) for name, part in vars(self).items()})


class Trainer:
    """The trainer of a network and of the moving average of its weights.

    `share` is (rank, workers). A worker takes every `workers`-th example of a step, from its rank.
    """

    def __init__(
        self,
        config: "NNiTConfig",
        dataset: Dataset,
        device: torch.device,
        seed: int,
        *,
        share: tuple[int, int] = (0, 1),
        average_gradients: AverageGradients = lambda parameters: None,
    ) -> None:
        self.config, self.dataset, self.device, self.seed = config, dataset, device, seed
        self.share, self.average_gradients = share, average_gradients
        torch.manual_seed(seed)
        self.network = NNiT(config.transformer, dataset.vocabulary, config.patch).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            config.lr,
            (0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.allowed = dataset.vocabulary.allowed().to(device)
        self.autocast = config.bf16 and has_bf16(device)

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint."""
        return {"network": self.network, "average": self.average, "optimizer": self.optimizer}

    def step(self, step: int) -> dict[str, float]:
        """Take step number `step`, and return the mean losses and the norm of the gradient."""
        return self.train_step(step, self.sample_batch(step))

    def sample_batch(self, step: int) -> list[Corrupted]:
        """Draw this worker's share of step number `step`, in `accumulate` parts, on the CPU."""
        rank, workers = self.share
        mine = range(rank, self._networks + self.config.architectures, workers)
        return [self.corrupted(step, part) for part in self._parts(mine)]

    def train_step(self, step: int, parts: Iterable[Corrupted]) -> dict[str, float]:
        """Take step number `step`, of which `parts` are this worker's share.

        Returns the mean losses and the norm of the gradient.
        """
        rate = learning_rate(step, self.config.steps, peak=self.config.lr, warmup=WARMUP)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        _, workers = self.share
        measured = torch.zeros(2, device=self.device)
        for part in parts:
            losses = torch.stack(self.losses(part.to(self.device)))
            (workers * (losses[0] + self.config.architecture_weight * losses[1])).backward()
            measured += workers * losses.detach()
        parameters = list(self.network.parameters())
        mean_losses = average_with_losses(parameters, measured, self.average_gradients)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self._update_average(step)
        flow, architecture = mean_losses.tolist()
        return {"flow": flow, "architecture": architecture, "grad_norm": float(norm)}

    def losses(self, batch: Corrupted) -> tuple[Tensor, Tensor]:
        """The contribution of a part to the step's mean flow loss and mean architecture loss."""
        packed, config = batch.packed, self.config
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            patches, logits = self.network(packed, batch.x_t, batch.time, batch.rate, batch.success)
        flow = flow_loss(
            patches.float(), batch.x, packed.mask_MP, batch.time, owner_M=packed.owner_M
        )
        architecture = masked_loss(
            logits.float(),
            batch.ids,
            batch.hidden,
            self.allowed[packed.slots_A],
            owner_A=packed.owner_A,
            S=packed.sequences,
        )
        count = self._networks + config.architectures
        return flow.sum() / self._networks, architecture.sum() / count

    def corrupted(self, step: int, numbers: Sequence[int]) -> Corrupted:
        """The examples with these numbers, each corrupted by its own random numbers."""
        examples = self.dataset.examples(step, numbers)
        ordered = sorted(zip(numbers, examples, strict=True), key=lambda pair: pair[1].length)
        return corrupt(
            [example for _, example in ordered],
            [stream("nnit.corruption", self.seed, step, number) for number, _ in ordered],
            self.dataset.vocabulary,
            self.config.mask_rate,
            condition_dropout=self.config.condition_dropout,
            logits=(self.config.logit_mean, self.config.logit_std),
        )

    @property
    def _networks(self) -> int:
        return self.config.topologies_per_step * self.config.networks_per_topology

    def _parts(self, numbers: range) -> list[Sequence[int]]:
        size = max(1, math.ceil(len(numbers) / self.config.accumulate))
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.network.parameters()), 1 - decay
        )


def corrupt(
    examples: list[Example],
    generators: list[torch.Generator],
    vocabulary: ArchitectureVocabulary,
    mask_rate: float,
    *,
    condition_dropout: float,
    logits: tuple[float, float] = (0.0, 1.0),
) -> Corrupted:
    """Corrupt each example with its own noise levels, noise and masks, and pack them.

    Architectures without weights are masked at a uniformly random rate. A share `mask_rate` of the
    networks is masked in the same way, the others not at all. Task and success are dropped together
    in a share `condition_dropout` of all examples, which guidance needs. `logits` are the mean and
    the standard deviation of the logits of noise levels.
    """
    ids, times, rates, successes, noises = [], [], [], [], []
    for example, rng in zip(examples, generators, strict=True):
        clean = torch.tensor(example.ids)
        drop, masking = torch.rand(2, generator=rng).tolist()
        alone = example.x is None
        rate = float(torch.rand((), generator=rng)) if alone or masking < mask_rate else 0.0
        masked = mask_ids(clean, vocabulary.mask, rate, rng)
        if drop < condition_dropout:
            masked[0] = vocabulary.mask
        ids.append(masked)
        rates.append(rate)
        successes.append(math.nan if drop < condition_dropout else example.success)
        times.append(0.0 if alone else sample_time(rng, *logits))
        if example.x is not None:
            noises.append(torch.randn(example.x.shape, generator=rng))
    packed = pack(
        [row.tolist() for row in ids],
        [example.layout for example in examples],
        [example.condition for example in examples],
        vocabulary.max_width,
        multiple=ROW_MULTIPLE,
    )
    empty = torch.zeros(0, vocabulary.patch**2)
    x = torch.cat([empty, *(example.x for example in examples if example.x is not None)])
    time = torch.tensor(times)
    clean = torch.tensor([token for example in examples for token in example.ids])
    x_t = noised(x, torch.cat([empty, *noises]), time[packed.owner_M])
    return Corrupted(
        packed,
        x_t * packed.mask_MP if len(x) else x_t,
        time,
        torch.tensor(rates),
        torch.tensor(successes),
        x,
        clean,
        clean != packed.ids_A,
    )


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return device.type == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)
