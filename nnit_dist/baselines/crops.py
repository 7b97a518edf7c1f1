"""Baselines without training: crops, averages and Gaussians of networks of seen topologies.

All except `TrainedCrops` use aligned networks of the hypernetwork, as NNiT does in training.
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

FIT_NETWORKS = 32  # networks of each seen topology that the Gaussians are fitted to


def nearest_topologies(hidden: Hidden, candidates: list[Hidden], count: int) -> list[Hidden]:
    """The `count` candidates of the same depth whose widths are nearest on a log scale.

    Raises:
        NnitError: no candidate has the same depth.
    """
    same = [other for other in candidates if len(other) == len(hidden)]
    if not same:
        raise NnitError(f"no known topology has {len(hidden)} layers to crop from.")
    widths = np.log(hidden)
    return sorted(same, key=lambda other: (np.abs(np.log(other) - widths).sum(), other))[:count]


def fit_to(networks: MLPBatch, target: Topology) -> MLPBatch:
    """Crop or zero-pad networks of one topology to `target`, which has the same depth.

    Padding changes no output: a unit without weights gives tanh(0) = 0. If inputs of a layer are
    cropped, its other weights grow by sqrt(old fan_in / new fan_in).
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
    """The average of aligned networks of the nearest seen topologies, cropped or padded.

    The number of networks is `neighbors`; with one, nothing is averaged. Each network imitates its
    own random mix of teachers.
    """

    sampler: HypernetModel
    neighbors: int
    name: str

    @one_thread()
    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """As `Generator.generate`."""
        target = self.sampler.topology(hidden)
        near = nearest_topologies(hidden, self.sampler.distribution.seen, self.neighbors)
        drawn = []
        for number in range(samples):
            rng = stream(f"baseline.{self.name}", seed, number, *hidden)
            crops = []
            for offset in range(self.neighbors):
                source = self.sampler.topology(near[offset % len(near)])
                mix = self.sampler.draw_teacher_weights(1, 1.0, rng)
                crops.append(fit_to(self.sampler.networks([source], mix, [rng]), target))
            drawn.append(_mean(MLPBatch.cat(crops), target))
        return policies_of(self.sampler, self.name, drawn, seed)


@dataclass
class TrainedCrops:
    """Policies of the population, taken in turn, cropped or padded. They are not aligned."""

    sampler: HypernetModel
    population: list[Policy]
    name: str = "trained_crop"

    def generate(self, hidden: Hidden, samples: int, seed: int = 0) -> list[Policy]:
        """As `Generator.generate`. To fit the depth, last hidden layers are repeated or dropped."""
        target = self.sampler.topology(hidden)
        sources = [self.population[number % len(self.population)] for number in range(samples)]
        networks = [fit_to(_with_depth(source, len(hidden)), target) for source in sources]
        return policies_of(self.sampler, self.name, networks, seed, raw=True)


@dataclass
class PatchGaussian:
    """Networks whose patches are drawn independently, each from its own Gaussian.

    A patch's Gaussian has the mean and the full covariance of its values in aligned networks of all
    seen topologies of the same depth that have the patch.
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
        """Mean [P] and covariance factor [P, P] of each patch, by depth and position."""
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
    """Mean [P] of values [K, P], and a factor L [P, P] of the covariance L L^T.

    L comes from eigenvectors, because the covariance may be singular.
    """
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
    """The policy's network with its last hidden layer repeated, or its last ones left out."""
    layers = MLPBatch.from_policies([policy]).layers(0)
    hidden = [layers[min(i, policy.topology.depth - 1)] for i in range(depth)]
    return MLPBatch.from_layers([[*hidden, layers[-1]]], policy.topology.activation)


def policies_of(
    sampler: HypernetModel, name: str, networks: list[MLPBatch], seed: int, *, raw: bool = False
) -> list[Policy]:
    """Turn networks for normalized, or for `raw`, observations into policies with ids in order."""
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
