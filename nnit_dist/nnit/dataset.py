"""Training examples: fresh networks that the hypernetwork writes, or a fixed list of them.

Widths are varied as in the hypernetwork's training. The shape that networks are conditioned on is
jittered; the hypernetwork and the transformer get the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.rng import stream
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.config import NNiTConfig
from nnit_dist.nnit.normalizer import TokenNormalizer
from nnit_dist.nnit.tokens import ArchitectureVocabulary, TokenLayout, token_layout, tokenize
from nnit_dist.nnit.trainer import Example
from nnit_dist.training.sampling import TaskSampler, TrainingDistribution, jitter_condition

NORMALIZER_NETWORKS = 256
WINDOW = 16  # batches whose networks are mixed when they are used again


@dataclass(frozen=True)
class Drawn:
    """The random draws for a training network that the hypernetwork has not written yet.

    `task` is the index of its task, and `topology` is near the `seen` one. The latent is drawn from
    `rng` when the network is written.
    """

    task: int
    seen: Hidden
    topology: Topology
    teacher_weights: Tensor
    condition: ConditioningShape
    rng: torch.Generator


class AlignedDataset:
    """Networks that a hypernetwork writes, and architectures without weights.

    A step has `topologies_per_step` topologies, `networks_per_topology` networks of each, and then
    the architectures. Writing the networks is a third of a step's time on a CPU, so each network
    can be used in several steps (`reuse`), every time with new noise and beside other networks.

    Each task has its own token normalizer. With a common one, a task whose weights are seven times
    as large needed four times the sampler's steps.
    """

    def __init__(self, model: HypernetModel, config: NNiTConfig, seed: int) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.models, self.distribution = model.each_task(), model.distribution
        self.vocabulary = ArchitectureVocabulary(
            [known.task.name for known in model.tasks],
            config.patch,
            self.distribution.max_width,
            self.distribution.max_depth,
        )
        self.best_success = [float(known.success[known.best].max()) for known in model.tasks]
        self.task_sampler = TaskSampler(self.vocabulary.tasks, config.task_weights)
        self.token_normalizers = [self._fit_normalizer(model) for model in self.models]
        self._kept: dict[tuple[int, int], Example] = {}

    @property
    def seen(self) -> list[Hidden]:
        """Hidden widths of the seen topologies."""
        return self.distribution.seen

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """The examples of a step with these numbers.

        The first `topologies_per_step * networks_per_topology` numbers are networks, the others
        architectures.
        """
        first = self.config.topologies_per_step * self.config.networks_per_topology
        networks = [number for number in numbers if number < first]
        reuse = self.config.reuse
        wanted = {n: (batch_of(step, n, reuse), n) for n in networks}
        oldest = step if reuse == 1 else step // (WINDOW * reuse) * WINDOW
        self._kept = {key: one for key, one in self._kept.items() if key[0] >= oldest}
        for batch, number in wanted.values():
            if (batch, number) not in self._kept:
                # Always written together: beside other networks, the last bits would differ.
                written = self._examples(self.drawn(batch, networks))
                self._kept |= {(batch, n): one for n, one in zip(networks, written, strict=True)}
        return [
            self._kept[wanted[number]] if number < first else self._architecture(step, number)
            for number in numbers
        ]

    def drawn(self, batch: int, numbers: Sequence[int]) -> list[Drawn]:
        """Draw the networks with these numbers of a batch (`batch_of`), without writing them."""
        config, rng = self.config, stream("nnit.topologies", self.seed, batch)
        picked = torch.randint(
            len(self.seen), (config.topologies_per_step,), generator=rng
        ).tolist()
        return [
            self._draw(self.seen[picked[number // config.networks_per_topology]], batch, number)
            for number in numbers
            if number < len(picked) * config.networks_per_topology
        ]

    def _draw(self, hidden: Hidden, batch: int, number: int) -> Drawn:
        """Draw a network near a seen topology, from its own generator."""
        rng, task = stream("nnit.networks", self.seed, batch, number), self._task(batch, number)
        topology = self.models[task].vary_widths(hidden, rng)
        (weights,) = self.models[task].draw_teacher_weights(1, self.config.best_share, rng)
        condition = draw_condition(topology, self.config, self.vocabulary, rng)
        return Drawn(task, hidden, topology, weights, condition, rng)

    def _task(self, batch: int, number: int) -> int:
        return self.task_sampler.task_of(batch + number)

    def write(self, drawn: list[Drawn]) -> MLPBatch:
        """Write the networks, for normalized observations. Each can be written only once."""
        z = [self.models[d.task].draw_latent(d.teacher_weights, d.rng) for d in drawn]
        return self.model.write(
            [d.topology for d in drawn],
            torch.stack(z),
            [d.condition for d in drawn],
            [d.task for d in drawn],
        )

    def _examples(self, drawn: list[Drawn]) -> list[Example]:
        if not drawn:
            return []
        layouts = [token_layout(d.topology, self.config.patch) for d in drawn]
        tokens = _tokens(self.write(drawn), layouts)
        return [self._example(*parts) for parts in zip(drawn, layouts, tokens, strict=True)]

    def _example(self, drawn: Drawn, layout: TokenLayout, tokens: Tensor) -> Example:
        known = self.model.tasks[drawn.task]
        return Example(
            self.vocabulary.encode(known.task.name, _hidden(drawn.condition)),
            float(drawn.teacher_weights @ known.success),
            layout,
            drawn.condition,
            self.token_normalizers[drawn.task].normalize(tokens, layout)[0],
        )

    def _architecture(self, step: int, number: int) -> Example:
        model = self.models[self._task(step, number)]
        rng = stream("nnit.architectures", self.seed, step, number)
        index = int(torch.randint(len(self.seen), (), generator=rng))
        ids = self.vocabulary.encode(model.task.name, self.seen[index])
        (weights,) = model.draw_teacher_weights(1, self.config.best_share, rng)
        return Example(self.vocabulary.filled(ids), float(weights @ model.current.success))

    def _fit_normalizer(self, model: HypernetModel) -> TokenNormalizer:
        """Fit a task's token normalizer to networks of seen topologies."""
        count = NORMALIZER_NETWORKS
        hidden = [self.seen[i * len(self.seen) // count] for i in range(count)]
        generators = [stream("nnit.token-normalizer", self.seed, i) for i in range(count)]
        topologies = [model.topology(widths) for widths in hidden]
        teacher_weights = torch.cat(
            [model.draw_teacher_weights(1, self.config.best_share, rng) for rng in generators]
        )
        networks = model.networks(topologies, teacher_weights, generators)
        layouts = [token_layout(topology, self.config.patch) for topology in topologies]
        return TokenNormalizer.fit(list(zip(_tokens(networks, layouts), layouts, strict=True)))


def _tokens(networks: MLPBatch, layouts: list[TokenLayout]) -> list[Tensor]:
    """The tokens [1, N, P] of each network."""
    return [tokenize(networks.select(slice(i, i + 1)), layout) for i, layout in enumerate(layouts)]


def batch_of(step: int, number: int, reuse: int) -> int:
    """The batch from which a step takes its network `number`; without reuse, the step itself.

    A window of `reuse * WINDOW` steps uses WINDOW batches, in `reuse` passes. In pass p the batch
    of network `number` is shifted by `p * number`, so that networks are combined anew in each pass.
    """
    window, offset = divmod(step, reuse * WINDOW)
    again, place = divmod(offset, WINDOW)
    return window * WINDOW + (place + again * number) % WINDOW


def draw_condition(
    topology: Topology,
    config: NNiTConfig,
    vocabulary: ArchitectureVocabulary,
    rng: torch.Generator,
) -> ConditioningShape:
    """Draw a jittered conditioning shape with whole widths that the vocabulary has."""
    condition = jitter_condition(
        topology, config.condition_width_noise, config.condition_depth_noise, rng
    )
    hidden = (min(max(round(w), config.patch), vocabulary.most_units) for w in condition.dims[1:-1])
    return ConditioningShape((topology.obs_dim, *hidden, topology.act_dim), condition.depth)


def _hidden(condition: ConditioningShape) -> Hidden:
    return tuple(int(width) for width in condition.dims[1:-1])


class ListedDataset:
    """A fixed list of networks for normalized observations, all with the same success_once.

    It serves baselines whose weights no hypernetwork writes. `model` provides only the task and its
    normalizer.
    """

    def __init__(
        self,
        networks: MLPBatch,
        success: float,
        model: HypernetModel,
        config: NNiTConfig,
        *,
        seed: int,
    ) -> None:
        self.success, self.config, self.seed = success, config, seed
        self.topologies = [networks.topology(i) for i in range(len(networks))]
        seen = sorted({topology.hidden for topology in self.topologies})
        self.distribution = TrainingDistribution(seen, 0)
        self.model = replace(model, tasks=[model.current], number=0)
        self.best_success = [success]
        self.vocabulary = ArchitectureVocabulary(
            [model.task.name],
            config.patch,
            self.distribution.max_width,
            self.distribution.max_depth,
        )
        self._layouts = [token_layout(topology, config.patch) for topology in self.topologies]
        pairs = list(zip(_tokens(networks, self._layouts), self._layouts, strict=True))
        self.token_normalizers = [TokenNormalizer.fit(pairs)]
        self._patches = [self.token_normalizers[0].normalize(*pair)[0] for pair in pairs]

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """The examples of a step with these numbers, each drawn independently from the list."""
        count = self.config.topologies_per_step * self.config.networks_per_topology
        streams = [stream("nnit.listed", self.seed, step, number) for number in numbers]
        return [self._example(rng, n >= count) for rng, n in zip(streams, numbers, strict=True)]

    def _example(self, rng: torch.Generator, alone: bool) -> Example:
        index = int(torch.randint(len(self.topologies), (), generator=rng))
        topology, task = self.topologies[index], self.vocabulary.tasks[0]
        if alone:
            ids = self.vocabulary.encode(task, topology.hidden)
            return Example(self.vocabulary.filled(ids), self.success)
        condition = draw_condition(topology, self.config, self.vocabulary, rng)
        layout, ids = self._layouts[index], self.vocabulary.encode(task, _hidden(condition))
        return Example(ids, self.success, layout, condition, self._patches[index])
