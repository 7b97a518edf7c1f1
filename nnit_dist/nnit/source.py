"""Training examples: fresh networks from the aligned sampler, or a fixed list of them.

Their widths are varied as in alignment, and the widths and the depth that hypernetwork and
transformer are told are jittered together (`align/told.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnit_dist.align.ghn import Layers
from nnit_dist.align.sampler import AlignedSampler
from nnit_dist.align.told import Told, jitter
from nnit_dist.nnit.tokens import ArchitectureVocabulary, token_layout, tokenize
from nnit_dist.nnit.trainer import Example
from nnit_dist.nnit.whitening import Whitening
from nnit_dist.randomness import generator_of
from nnit_dist.topology import Hidden, Topology

WHITENING_NETWORKS = 256


class SourceConfig(Protocol):
    """What a source has to know; `NNiTConfig` has it."""

    patch: int
    topologies: int
    networks: int
    width_jitter: float
    depth_jitter: float
    best_share: float


@dataclass(frozen=True)
class Drawn:
    """What a training network is: near a seen topology, after a mix, told to be something.

    Its generator goes on to draw the latent.
    """

    seen: Hidden
    topology: Topology
    mix: Tensor
    told: Told
    rng: torch.Generator


class AlignedSource:
    """A step has `topologies` topologies, `networks` networks of each, then architectures alone."""

    def __init__(self, sampler: AlignedSampler, config: SourceConfig, seed: int) -> None:
        self.sampler, self.config, self.seed = sampler, config, seed
        max_depth = max(len(hidden) for hidden in sampler.seen)
        self.vocabulary = ArchitectureVocabulary(
            [sampler.task.name], config.patch, sampler.max_width, max_depth
        )
        self.seen, self.best_success = sampler.seen, float(sampler.success[sampler.best].max())
        self.whitening = self._fit_whitening()

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """Examples of these numbers: networks below topologies * networks, else architectures."""
        networks = iter(self._examples(self.drawn(step, numbers)))
        first = self.config.topologies * self.config.networks
        return [
            next(networks) if number < first else self._architecture(step, number)
            for number in numbers
        ]

    def drawn(self, step: int, numbers: Sequence[int]) -> list[Drawn]:
        """The networks of these numbers, not yet written."""
        config, rng = self.config, generator_of(self.seed, step, -1)
        picked = torch.randint(len(self.seen), (config.topologies,), generator=rng).tolist()
        return [
            self._draw(self.seen[picked[number // config.networks]], step, number)
            for number in numbers
            if number < len(picked) * config.networks
        ]

    def _draw(self, hidden: Hidden, step: int, number: int) -> Drawn:
        """A network near a seen topology, from its own generator."""
        rng = generator_of(self.seed, step, number)
        topology = self.sampler.vary(hidden, rng)
        (mix,) = self.sampler.mixes(1, self.config.best_share, rng)
        return Drawn(hidden, topology, mix, tell(topology, self.config, self.vocabulary, rng), rng)

    def write(self, drawn: list[Drawn]) -> list[Layers]:
        """Their layers [1, ...], for whitened inputs; each can be written once."""
        return self.sampler.networks(
            [one.topology for one in drawn],
            torch.stack([one.mix for one in drawn]),
            [one.rng for one in drawn],
            [one.told for one in drawn],
        )

    def _examples(self, drawn: list[Drawn]) -> list[Example]:
        if not drawn:
            return []
        examples = []
        for one, layers in zip(drawn, self.write(drawn), strict=True):
            layout = token_layout(one.topology, self.config.patch)
            examples.append(
                Example(
                    _encode(self.vocabulary, one.told),
                    float(one.mix @ self.sampler.success),
                    layout,
                    one.told,
                    self.whitening.whiten(tokenize(layers, layout), layout)[0],
                )
            )
        return examples

    def _architecture(self, step: int, number: int) -> Example:
        rng = generator_of(self.seed, step, number)
        index = int(torch.randint(len(self.seen), (), generator=rng))
        ids = self.vocabulary.encode(self.sampler.task.name, self.seen[index])
        (mix,) = self.sampler.mixes(1, self.config.best_share, rng)
        return Example(self.vocabulary.filled(ids), float(mix @ self.sampler.success))

    def _fit_whitening(self) -> Whitening:
        """Statistics of tokens of seen topologies, per kind of token."""
        generators = [generator_of(self.seed, -1, i) for i in range(WHITENING_NETWORKS)]
        seen = [i * len(self.seen) // WHITENING_NETWORKS for i in range(WHITENING_NETWORKS)]
        topologies = [self.sampler.topology(self.seen[index]) for index in seen]
        share = self.config.best_share
        mixes = torch.cat([self.sampler.mixes(1, share, rng) for rng in generators])
        networks = self.sampler.networks(topologies, mixes, generators)
        layouts = [token_layout(topology, self.config.patch) for topology in topologies]
        return Whitening.fit(
            [(tokenize(n, layout), layout) for n, layout in zip(networks, layouts, strict=True)]
        )


def tell(
    topology: Topology,
    config: SourceConfig,
    vocabulary: ArchitectureVocabulary,
    rng: torch.Generator,
) -> Told:
    """Jittered, with widths in whole units that the vocabulary has."""
    told = jitter(topology, config.width_jitter, config.depth_jitter, rng)
    hidden = (min(max(round(w), config.patch), vocabulary.most_units) for w in told.dims[1:-1])
    return Told((topology.obs_dim, *hidden, topology.act_dim), told.depth)


def _encode(vocabulary: ArchitectureVocabulary, told: Told) -> list[int]:
    return vocabulary.encode(vocabulary.tasks[0], tuple(int(width) for width in told.dims[1:-1]))


@dataclass(frozen=True)
class Listed:
    """A network of a fixed list: layers [1, ...] for whitened inputs, and what it reaches."""

    topology: Topology
    layers: Layers
    success: float


class ListedSource:
    """A fixed list of networks, for weights that no sampler writes.

    `sampler` gives the task, its sizes and the input normalisation; its networks are not used.
    """

    def __init__(
        self, networks: list[Listed], sampler: AlignedSampler, config: SourceConfig, seed: int
    ) -> None:
        self.networks, self.sampler, self.config, self.seed = networks, sampler, config, seed
        self.seen = sorted({network.topology.hidden for network in networks})
        self.best_success = max(network.success for network in networks)
        max_depth = max(len(hidden) for hidden in self.seen)
        max_width = max(max(hidden) for hidden in self.seen)
        self.vocabulary = ArchitectureVocabulary(
            [sampler.task.name], config.patch, max_width, max_depth
        )
        self._layouts = [token_layout(n.topology, config.patch) for n in networks]
        pairs = [
            (tokenize(n.layers, lay), lay) for n, lay in zip(networks, self._layouts, strict=True)
        ]
        self.whitening = Whitening.fit(pairs)
        self._patches = [self.whitening.whiten(*pair)[0] for pair in pairs]

    def examples(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """As `AlignedSource`, but every network is picked on its own."""
        count = self.config.topologies * self.config.networks
        return [self._example(generator_of(self.seed, step, n), n >= count) for n in numbers]

    def _example(self, rng: torch.Generator, alone: bool) -> Example:
        index = int(torch.randint(len(self.networks), (), generator=rng))
        network = self.networks[index]
        if alone:
            ids = _encode(self.vocabulary, Told.of(network.topology))
            return Example(self.vocabulary.filled(ids), network.success)
        told = tell(network.topology, self.config, self.vocabulary, rng)
        layout, ids = self._layouts[index], _encode(self.vocabulary, told)
        return Example(ids, network.success, layout, told, self._patches[index])
