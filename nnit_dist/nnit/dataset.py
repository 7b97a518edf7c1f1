"""Training examples: fresh networks from the aligned sampler, or a fixed list of them.

Their widths are varied as in alignment, and the widths and the depth that hypernetwork and
transformer are told are jittered together (`align/told.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.rng import generator_of
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.model import HypernetModel, write_networks
from nnit_dist.nnit.normalizer import TokenNormalizer
from nnit_dist.nnit.tokens import ArchitectureVocabulary, TokenLayout, token_layout, tokenize
from nnit_dist.nnit.trainer import Example
from nnit_dist.training.sampling import TaskSampler, jitter_condition

NORMALIZER_NETWORKS = 256
WINDOW = 16  # steps whose networks are mixed where they are used again


class SourceConfig(Protocol):
    """What a source has to know; `NNiTConfig` has it."""

    patch: int
    topologies_per_step: int
    networks_per_topology: int
    reuse: int
    task_weights: dict[str, int]
    condition_width_noise: float
    condition_depth_noise: float
    best_share: float


@dataclass(frozen=True)
class Drawn:
    """What a training network is: near a seen topology, after a mix, told to be something.

    Its generator goes on to draw the latent; `task` is its sampler's index.
    """

    task: int
    seen: Hidden
    topology: Topology
    mix: Tensor
    condition: ConditioningShape
    rng: torch.Generator


class AlignedDataset:
    """A step has `topologies` topologies, `networks` networks of each, then architectures alone.

    Writing its networks is a third of a step's time on a CPU, so they may be used in several steps
    (`reuse`), each time with noise of their own and beside other networks.

    Tasks, each with a sampler of the same hypernetwork, take turns. Each has a whitening of its
    own. (With one for all, a task whose weights are seven times as large asked for four times the
    sampler's steps.)
    """

    def __init__(
        self,
        samplers: list[HypernetModel],
        config: SourceConfig,
        seed: int,
    ) -> None:
        self.samplers, self.config, self.seed = samplers, config, seed
        self.seen, first = samplers[0].seen, samplers[0]
        self.vocabulary = ArchitectureVocabulary(
            [sampler.task.name for sampler in samplers],
            config.patch,
            first.max_width,
            max(len(hidden) for hidden in self.seen),
        )
        self.best_success = [float(s.success[s.best].max()) for s in samplers]
        self.task_sampler = TaskSampler(self.vocabulary.tasks, config.task_weights)
        self.token_normalizers = [self._fit_normalizer(sampler) for sampler in samplers]
        self._kept: dict[tuple[int, int], Example] = {}

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """Examples of these numbers: networks below topologies * networks, else architectures."""
        first = self.config.topologies_per_step * self.config.networks_per_topology
        networks = [number for number in numbers if number < first]
        reuse = self.config.reuse
        wanted = {n: (batch_of(step, n, reuse), n) for n in networks}
        oldest = step if reuse == 1 else step // (WINDOW * reuse) * WINDOW
        self._kept = {key: one for key, one in self._kept.items() if key[0] >= oldest}
        for batch, number in wanted.values():
            if (batch, number) not in self._kept:
                # Always together: written beside others, a network differs in its last bits.
                written = self._examples(self.drawn(batch, networks))
                self._kept |= {(batch, n): one for n, one in zip(networks, written, strict=True)}
        return [
            self._kept[wanted[number]] if number < first else self._architecture(step, number)
            for number in numbers
        ]

    def drawn(self, batch: int, numbers: Sequence[int]) -> list[Drawn]:
        """The networks of these numbers of a batch (`batch_of`), not yet written."""
        config, rng = self.config, generator_of(self.seed, batch, -1)
        picked = torch.randint(
            len(self.seen), (config.topologies_per_step,), generator=rng
        ).tolist()
        return [
            self._draw(self.seen[picked[number // config.networks_per_topology]], batch, number)
            for number in numbers
            if number < len(picked) * config.networks_per_topology
        ]

    def _draw(self, hidden: Hidden, batch: int, number: int) -> Drawn:
        """A network near a seen topology, from its own generator."""
        rng, task = generator_of(self.seed, batch, number), self._task(batch, number)
        topology = self.samplers[task].vary_widths(hidden, rng)
        (mix,) = self.samplers[task].draw_teacher_weights(1, self.config.best_share, rng)
        condition = draw_condition(topology, self.config, self.vocabulary, rng)
        return Drawn(task, hidden, topology, mix, condition, rng)

    def _task(self, batch: int, number: int) -> int:
        return self.task_sampler.task_of(batch + number)

    def write(self, drawn: list[Drawn]) -> MLPBatch:
        """The networks, for normalized observations; each can be written once."""
        z = [self.samplers[one.task].draw_latent(one.mix, one.rng) for one in drawn]
        return write_networks(
            self.samplers[0].ghn,
            [one.topology for one in drawn],
            torch.stack(z),
            [one.condition for one in drawn],
            [self.samplers[one.task].number for one in drawn],
        )

    def _examples(self, drawn: list[Drawn]) -> list[Example]:
        if not drawn:
            return []
        examples = []
        layouts = [token_layout(one.topology, self.config.patch) for one in drawn]
        for one, layout, values in zip(
            drawn, layouts, _tokens(self.write(drawn), layouts), strict=True
        ):
            sampler = self.samplers[one.task]
            examples.append(
                Example(
                    self.vocabulary.encode(sampler.task.name, _hidden(one.condition)),
                    float(one.mix @ sampler.success),
                    layout,
                    one.condition,
                    self.token_normalizers[one.task].normalize(values, layout)[0],
                )
            )
        return examples

    def _architecture(self, step: int, number: int) -> Example:
        rng, sampler = (
            generator_of(self.seed, step, number),
            self.samplers[self._task(step, number)],
        )
        index = int(torch.randint(len(self.seen), (), generator=rng))
        ids = self.vocabulary.encode(sampler.task.name, self.seen[index])
        (mix,) = sampler.draw_teacher_weights(1, self.config.best_share, rng)
        return Example(self.vocabulary.filled(ids), float(mix @ sampler.success))

    def _fit_normalizer(self, sampler: HypernetModel) -> TokenNormalizer:
        """Statistics of tokens of seen topologies, per kind of token."""
        seen = [i * len(self.seen) // NORMALIZER_NETWORKS for i in range(NORMALIZER_NETWORKS)]
        generators = [generator_of(self.seed, -1, i) for i in range(NORMALIZER_NETWORKS)]
        topologies = [sampler.topology(self.seen[index]) for index in seen]
        teacher_weights = torch.cat(
            [sampler.draw_teacher_weights(1, self.config.best_share, rng) for rng in generators]
        )
        networks = sampler.networks(topologies, teacher_weights, generators)
        layouts = [token_layout(topology, self.config.patch) for topology in topologies]
        return TokenNormalizer.fit(list(zip(_tokens(networks, layouts), layouts, strict=True)))


def _tokens(networks: MLPBatch, layouts: list[TokenLayout]) -> list[Tensor]:
    """The tokens [1, N, P] of each network."""
    return [tokenize(networks.select(slice(i, i + 1)), layout) for i, layout in enumerate(layouts)]


def batch_of(step: int, number: int, reuse: int) -> int:
    """Which batch of networks a step takes its network `number` from; the step's own without reuse.

    In a window of `reuse` * WINDOW steps there are WINDOW batches, which are passed through
    `reuse` times. From pass to pass a number moves on by as many batches, so that networks meet
    others each time.
    """
    window, offset = divmod(step, reuse * WINDOW)
    again, place = divmod(offset, WINDOW)
    return window * WINDOW + (place + again * number) % WINDOW


def draw_condition(
    topology: Topology,
    config: SourceConfig,
    vocabulary: ArchitectureVocabulary,
    rng: torch.Generator,
) -> ConditioningShape:
    """Jittered, with widths in whole units that the vocabulary has."""
    condition = jitter_condition(
        topology, config.condition_width_noise, config.condition_depth_noise, rng
    )
    hidden = (min(max(round(w), config.patch), vocabulary.most_units) for w in condition.dims[1:-1])
    return ConditioningShape((topology.obs_dim, *hidden, topology.act_dim), condition.depth)


def _hidden(condition: ConditioningShape) -> Hidden:
    return tuple(int(width) for width in condition.dims[1:-1])


class ListedDataset:
    """A fixed list of networks that succeed equally often, for weights that no sampler writes.

    They are for normalized observations. `sampler` gives the task, its sizes and the normalizer;
    its networks are not used.
    """

    def __init__(
        self,
        networks: MLPBatch,
        success: float,
        sampler: HypernetModel,
        config: SourceConfig,
        *,
        seed: int,
    ) -> None:
        self.success, self.samplers, self.config, self.seed = success, [sampler], config, seed
        self.topologies = [networks.topology(i) for i in range(len(networks))]
        self.seen = sorted({topology.hidden for topology in self.topologies})
        self.best_success = [success]
        max_depth = max(len(hidden) for hidden in self.seen)
        max_width = max(max(hidden) for hidden in self.seen)
        self.vocabulary = ArchitectureVocabulary(
            [sampler.task.name], config.patch, max_width, max_depth
        )
        self._layouts = [token_layout(topology, config.patch) for topology in self.topologies]
        pairs = list(zip(_tokens(networks, self._layouts), self._layouts, strict=True))
        self.token_normalizers = [TokenNormalizer.fit(pairs)]
        self._patches = [self.token_normalizers[0].normalize(*pair)[0] for pair in pairs]

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """As `AlignedSource`, but every network is picked on its own."""
        count = self.config.topologies_per_step * self.config.networks_per_topology
        return [self._example(generator_of(self.seed, step, n), n >= count) for n in numbers]

    def _example(self, rng: torch.Generator, alone: bool) -> Example:
        index = int(torch.randint(len(self.topologies), (), generator=rng))
        topology, task = self.topologies[index], self.vocabulary.tasks[0]
        if alone:
            ids = self.vocabulary.encode(task, topology.hidden)
            return Example(self.vocabulary.filled(ids), self.success)
        condition = draw_condition(topology, self.config, self.vocabulary, rng)
        layout, ids = self._layouts[index], self.vocabulary.encode(task, _hidden(condition))
        return Example(ids, self.success, layout, condition, self._patches[index])
