"""`nnit bench train`: tokens per second of NNiT's training step, and its share of peak speed.

The peak is the speed of square matrix products in the same number format, measured in the same run.
The networks are random numbers, so the hypernetwork's time to write them is not included. On a CPU,
attention always runs in float32. The benchmark needs only torch and pydantic, so that it also runs
on a bare GPU machine: `python -m nnit_dist.bench.train --size 100m --device cuda`.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnit_dist.core.formatting import millions
from nnit_dist.core.rng import stream
from nnit_dist.core.splits import grid
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.nnit.config import NNiTConfig, TransformerConfig
from nnit_dist.nnit.tokens import ArchitectureVocabulary, token_layout
from nnit_dist.nnit.trainer import Corrupted, Example, Trainer

SIDES = (1024, 2048, 4096)  # of the square matrices whose products give the peak


@dataclass(frozen=True)
class Size:
    """A size of NNiT: its configuration, and the grid of topologies that it trains on."""

    config: NNiTConfig
    widths: list[int]
    depths: list[int]

    @cached_property
    def seen(self) -> list[Hidden]:
        """Hidden widths of the topologies that are trained on."""
        return grid(self.widths, self.depths)


SIZES = {
    "pushcube": Size(NNiTConfig(steps=1000), [16, 32, 48, 64], [1, 2, 3]),
    "100m": Size(
        NNiTConfig(steps=1000, transformer=TransformerConfig(704, 12, 11)),
        [16, 32, 64, 128, 256],
        [1, 2, 3, 4],
    ),
}


class RandomNetworks:
    """A source of training examples: random weights in the shapes of PushCube-v1's policies."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.vocabulary = ArchitectureVocabulary(
            ["random"], size.config.patch, max(size.widths), max(size.depths)
        )

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """Examples as in `AlignedDataset`: networks of a few topologies, then architectures."""
        picked = random.Random(step).choices(self.size.seen, k=self.size.config.topologies_per_step)
        return [self._example(picked, step, number) for number in numbers]

    def _example(self, picked: list[Hidden], step: int, number: int) -> Example:
        group = number // self.size.config.networks_per_topology
        rng = stream("bench.train", step, number)
        hidden = picked[group % len(picked)]
        ids = self.vocabulary.encode("random", hidden)
        if group >= len(picked):
            return Example(self.vocabulary.filled(ids), 0.5)
        layout = token_layout(Topology(35, hidden, 8), self.size.config.patch)
        x = torch.randn(layout.mask.shape, generator=rng) * layout.mask
        return Example(ids, 0.5, layout, None, x)


class TrainFigures(TypedDict):
    """Figures of training steps, and the device's peak.

    `tokens` is the mean per step, including filler, and `real` the share that is not filler.
    `step_ms` and `network_ms` are medians, with and without drawing the batch. `flops` and `peak`
    are floating point operations per second.
    """

    parameters: int
    tokens: float
    real: float
    step_ms: float
    network_ms: float
    tokens_s: float
    flops: float
    peak: float
    bf16: bool


def bench_train(size: Size, device: torch.device, steps: int) -> TrainFigures:
    """Measure `steps` training steps, and the device's peak before and after them."""
    trainer = Trainer(size.config, RandomNetworks(size), device, 0)
    dtype = torch.bfloat16 if trainer.autocast else torch.float32
    peaks = [matmul_peak(device, dtype)]
    step_s, network_s, rates, tokens, slots = [], [], [], 0, 0
    config = size.config
    networks = config.topologies_per_step * config.networks_per_topology
    examples = networks + config.architectures
    for step in range(steps + 2):
        started = time.perf_counter()
        batch = trainer.corrupted(step, range(examples)).to(device)
        _wait(device)
        drawn = time.perf_counter()
        trainer.train_step(step, [batch])
        _wait(device)
        ended = time.perf_counter()
        if step >= 2:  # the first ones warm up
            step_s.append(ended - started)
            network_s.append(ended - drawn)
            rates.append(step_flops(trainer, batch) / (ended - drawn))
            tokens += len(batch.packed.owner_T)
            slots += int((batch.ids == 0).sum()) + batch.packed.filler
    peaks.append(matmul_peak(device, dtype))
    median = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    return {
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "tokens": tokens / steps,
        "real": 1 - slots / tokens,
        "step_ms": 1000 * median(step_s),
        "network_ms": 1000 * median(network_s),
        "tokens_s": (tokens - slots) / sum(step_s),
        "flops": median(rates),
        "peak": max(peaks),
        "bf16": dtype == torch.bfloat16,
    }


def step_flops(trainer: Trainer, batch: Corrupted) -> float:
    """Floating point operations of a step's matrix products, backward pass included.

    Attention is added by hand because torch counts it only on some devices. Activations that are
    computed again in the backward pass do not count.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trainer.losses(batch)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(count for name, count in counted.items() if "attention" not in str(name))
    config = trainer.config.transformer
    pairs = sum(count * length**2 for count, length in batch.packed.runs)
    return 3 * (linear + 4 * pairs * config.width * config.depth)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of the fastest of several square matrix products."""
    rates = []
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        repeats = max(3, int(2e11 // side**3) if device.type == "cpu" else 50)
        a @ b
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        rates.append(2 * side**3 * repeats / (time.perf_counter() - started))
    return max(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lines(name: str, device: torch.device, steps: int) -> Iterator[str]:
    """Measure a size on a device; yields lines of results."""
    figures = bench_train(SIZES[name], device, steps)
    number_format = "bfloat16" if figures["bf16"] else "float32"
    yield (
        f"{name} on {device}: {millions(figures['parameters'])} parameters, "
        f"{figures['tokens']:,.0f} tokens a step, {figures['real']:.1%} of them real"
    )
    yield (
        f"  step {figures['step_ms']:.0f} ms, of which the network {figures['network_ms']:.0f} ms: "
        f"{figures['tokens_s']:,.0f} real tokens/s"
    )
    yield (
        f"  {figures['flops'] / 1e9:,.0f} GFLOP/s in matrix products, "
        f"{figures['flops'] / figures['peak']:.0%} of the {number_format} peak of "
        f"{figures['peak'] / 1e9:,.0f} GFLOP/s"
    )


def main() -> None:
    """Run the benchmark as a command of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="pushcube")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    words = parser.parse_args()
    for line in lines(words.size, torch.device(words.device), words.steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
