"""Baselines without learning: networks of seen topologies, cropped, averaged, or as Gaussians.

All but `TrainedCrops` work on networks from the aligned sampler, which is what NNiT is trained on,
and so have alignment's help as NNiT has.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnit_dist.core.errors import NnitError
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.policy import Policy
from nnit_dist.core.rng import one_thread, stream
from nnit_dist.core.topology import Hidden, Topology
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.tokens import detokenize, token_layout, tokenize

FIT_NETWORKS = 32  # of each seen topology that a Gaussian is fitted to


def nearest_topologies(hidden: Hidden, candidates: list[Hidden], count: int) -> list[Hidden]:
    """The `count` topologies of `known` of the same depth whose widths are nearest (log scale).

    Raises:
        NnitError: none has the same depth.
    """
    same = [other for other in candidates if len(other) == len(hidden)]
    if not same:
        raise NnitError(f"no known topology has {len(hidden)} layers to crop from.")
    widths = np.log(hidden)
    return sorted(same, key=lambda other: (np.abs(np.log(other) - widths).sum(), other))[:count]


def fit_to(networks: MLPBatch, target: Topology) -> MLPBatch:
    """Cut or zero-pad networks of one topology to `target`, which has as many layers.

    Padding changes no output: a unit without weights gives tanh(0). What is cut is made up for
    by growing the rest as 1/sqrt(fan_in).
    """
    weights, biases = [], []
    for layer, (out, fan_in) in enumerate(target.shapes):
        rows, columns = networks.shapes[0, layer].tolist()
        scaled = networks.weights[layer][:, :rows, :columns] * max(1.0, columns / fan_in) ** 0.5
        weights.append(F.pad(scaled, (0, fan_in - columns, 0, out - rows)))
        biases.append(F.pad(networks.biases[layer][:, :rows], (0, out - rows)))
    return MLPBatch.of_topology(target, weights, biases)


@dataclass
class AlignedCrops:
    """Aligned networks of the nearest seen topologies, cut or padded, and averaged.

    One neighbour: "nearest seen network, cropped". Several: "average of crops", over as many
    seen topologies, each after a mix of its own.
    """

    sampler: HypernetModel
    neighbours: int
    name: str

    @one_thread()
    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """As `Generator.generate`."""
        target = self.sampler.topology(hidden)
        near = nearest_topologies(hidden, self.sampler.distribution.seen, self.neighbours)
        drawn = []
        for number in range(samples):
            rng = stream(f"baseline.{self.name}", seed, number, *hidden)
            crops = []
            for offset in range(self.neighbours):
                source = self.sampler.topology(near[offset % len(near)])
                mix = self.sampler.draw_teacher_weights(1, 1.0, rng)
                crops.append(fit_to(self.sampler.networks([source], mix, [rng]), target))
            drawn.append(_mean(MLPBatch.cat(crops), target))
        return policies_of(self.sampler, self.name, drawn, seed)


@dataclass
class TrainedCrops:
    """Policies as reinforcement learning left them, cut or padded; teachers in turn."""

    sampler: HypernetModel
    population: list[Policy]
    name: str = "trained_crop"

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """Where the depth differs, the last hidden layer is repeated, or the last ones left out."""
        target = self.sampler.topology(hidden)
        sources = [self.population[number % len(self.population)] for number in range(samples)]
        networks = [fit_to(_with_depth(source, len(hidden)), target) for source in sources]
        return policies_of(self.sampler, self.name, networks, seed, raw=True)


@dataclass
class PatchGaussian:
    """Every patch drawn on its own, from the Gaussian of that patch over seen networks.

    Mean and full covariance of the patch's values, fitted over all seen topologies of the same
    depth that have the patch.
    """

    sampler: HypernetModel
    patch: int
    name: str = "patch_gaussian"

    @one_thread()
    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """As `Generator.generate`."""
        target = self.sampler.topology(hidden)
        layout = token_layout(target, self.patch)
        fitted = self._fitted.get(len(hidden), {})
        if missing := set(_keys(target, self.patch)) - set(fitted):
            raise NnitError(
                f"{len(missing)} patches of {target.name} are in no seen network, so there is no "
                "Gaussian of them."
            )
        drawn = []
        for number in range(samples):
            rng = stream(f"baseline.{self.name}", seed, number, *hidden)
            noise = torch.randn(layout.mask.shape, generator=rng)
            places = zip(_keys(target, self.patch), noise, strict=True)
            values = torch.stack([fitted[key][0] + fitted[key][1] @ z for key, z in places])
            drawn.append(detokenize((values * layout.mask)[None], layout))
        return policies_of(self.sampler, self.name, drawn, seed)

    @cached_property
    def _fitted(self) -> dict[int, dict[tuple, tuple[Tensor, Tensor]]]:
        """By depth and place of a patch: mean [P], and a factor [P, P] of the covariance."""
        by_depth: dict[int, dict[tuple, list[Tensor]]] = {}
        rng = stream(f"baseline.{self.name}.fit")
        for hidden in self.sampler.distribution.seen:
            topology = self.sampler.topology(hidden)
            layout = token_layout(topology, self.patch)
            teacher_weights = self.sampler.draw_teacher_weights(FIT_NETWORKS, 1.0, rng)
            networks = self.sampler.networks(
                [topology] * len(teacher_weights), teacher_weights, [rng] * len(teacher_weights)
            )
            values = tokenize(networks, layout)
            patches = by_depth.setdefault(len(hidden), {})
            for index, key in enumerate(_keys(topology, self.patch)):
                patches.setdefault(key, []).append(values[:, index])
        return {
            depth: {key: _gaussian(torch.cat(parts)) for key, parts in patches.items()}
            for depth, patches in by_depth.items()
        }


def _keys(topology: Topology, patch: int) -> list[tuple]:
    layout = token_layout(topology, patch)
    columns = (layout.kind, layout.layer, layout.row, layout.col)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _gaussian(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and a factor L of the covariance L L^T (by eigenvectors: it may be singular)."""
    size, vectors = torch.linalg.eigh(torch.cov(values.T.double()))
    factor = vectors * size.clamp(min=0).sqrt()
    return values.mean(0), factor.to(values)


def _mean(networks: MLPBatch, topology: Topology) -> MLPBatch:
    """The mean of several networks of one topology."""
    weights, biases = (
        [part.mean(0, keepdim=True) for part in parts]
        for parts in (networks.weights, networks.biases)
    )
    return MLPBatch.of_topology(topology, weights, biases)


def _with_depth(policy: Policy, depth: int) -> MLPBatch:
    """A network for raw observations with its last hidden layers repeated or left out."""
    layers = MLPBatch.from_policies([policy]).layers(0)
    hidden = [layers[min(i, policy.topology.depth - 1)] for i in range(depth)]
    return MLPBatch.from_layers([[*hidden, layers[-1]]], policy.topology.activation)


def policies_of(
    sampler: HypernetModel, name: str, networks: list[MLPBatch], seed: int, *, raw: bool = False
) -> list[Policy]:
    """Policies of networks for normalized observations, or for `raw` ones; numbered in order."""
    if not networks:
        return []
    batch = MLPBatch.cat(networks)
    names = [batch.topology(number).name for number in range(len(batch))]
    return batch.to_policies(
        task=sampler.task,
        source=name,
        ids=[f"{name}_{topology}_{seed}_{number}" for number, topology in enumerate(names)],
        normalizer=None if raw else sampler.current.normalizer,
    )
