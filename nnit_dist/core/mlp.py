"""A batch of MLPs in tensors: the one type for networks that are computed with together.

Networks of different widths and depths are padded with zeros. Padding changes no output, and its
gradients are zero: every activation maps 0 to 0, which then meets weights of 0.

Shapes: B networks, L layers at most, S states.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnit_dist.core.normalizer import ObservationNormalizer
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.topology import ACTIVATIONS, Activation, Topology

if TYPE_CHECKING:
    from nnit_dist.core.policy import Policy

ACTIVATION_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": F.elu,
    "silu": F.silu,
}
_FUNCTIONS = [ACTIVATION_FUNCTIONS[name] for name in ACTIVATIONS]
Layer = tuple[Tensor, Tensor]  # weight [out, in] and bias [out]


@dataclass(eq=False)
class MLPBatch:
    """B networks: hidden layers of one activation each, and a linear output layer.

    Attributes:
        weights: for every layer [B, out, in], at least as large as the largest network's.
        biases: for every layer [B, out].
        shapes: int64 [B, L, 2], each network's own (out, in) of every layer, zero where it has no
            such layer.
        activations: int64 [B], indices into `ACTIVATIONS`.

    `shapes` and `activations` stay on the CPU, so that sizes are known without waiting for a GPU.
    A layer has as many inputs as the layer before it has outputs, padding included.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    shapes: Tensor
    activations: Tensor

    @classmethod
    def of_topology(
        cls, topology: Topology, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> "MLPBatch":
        """Networks of one topology: weights [B, out, in] and biases [B, out] of every layer."""
        count = len(biases[0])
        return cls(
            list(weights),
            list(biases),
            torch.tensor(topology.shapes).expand(count, -1, -1),
            torch.full((count,), ACTIVATIONS.index(topology.activation)),
        )

    @classmethod
    def full(cls, topologies: Sequence[Topology], value: float) -> "MLPBatch":
        """A network of each topology in which all weights and biases are `value`."""
        return cls._from_arrays(
            [[(np.full(s, value), np.full(s[0], value)) for s in t.shapes] for t in topologies],
            [topology.activation for topology in topologies],
        )

    @classmethod
    def randn(cls, topology: Topology, count: int, rng: torch.Generator) -> "MLPBatch":
        """`count` networks of one topology, standard normal; of each layer first the weights."""
        weights, biases = [], []
        for out, fan_in in topology.shapes:
            weights.append(torch.randn(count, out, fan_in, generator=rng))
            biases.append(torch.randn(count, out, generator=rng))
        return cls.of_topology(topology, weights, biases)

    @classmethod
    def from_layers(
        cls,
        networks: Sequence[Sequence[Layer]],
        activations: Activation | Sequence[Activation] = "tanh",
    ) -> "MLPBatch":
        """Copies, on the CPU, of each network's layers; one activation for all or one for each."""
        names = [activations] * len(networks) if isinstance(activations, str) else activations
        arrays = [[(w.numpy(force=True), b.numpy(force=True)) for w, b in own] for own in networks]
        return cls._from_arrays(arrays, names)

    @classmethod
    def from_policies(
        cls, policies: Sequence["Policy"], normalizer: ObservationNormalizer | None = None
    ) -> "MLPBatch":
        """Policies for raw observations; with a normalizer, for normalized ones instead."""
        return cls._from_arrays(
            [normalizer.unfold(p.layers) if normalizer else p.layers for p in policies],
            [policy.topology.activation for policy in policies],
        )

    @classmethod
    def _from_arrays(
        cls,
        networks: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
        activations: Sequence[Activation],
    ) -> "MLPBatch":
        # (Filled in numpy: a fifth of the time of as many small operations of torch.)
        shapes = np.zeros((len(networks), max(map(len, networks)), 2), np.int64)
        for network, layers in enumerate(networks):
            shapes[network, : len(layers)] = [weight.shape for weight, _ in layers]
        sizes = _sizes(torch.from_numpy(shapes))
        weights = [
            np.zeros((len(networks), out, fan_in), np.float32)
            for fan_in, out in itertools.pairwise(sizes)
        ]
        biases = [np.zeros((len(networks), out), np.float32) for out in sizes[1:]]
        for network, layers in enumerate(networks):
            for layer, (weight, bias) in enumerate(layers):
                out, fan_in = weight.shape
                weights[layer][network, :out, :fan_in] = weight
                biases[layer][network, :out] = bias
        return cls(
            [torch.from_numpy(weight) for weight in weights],
            [torch.from_numpy(bias) for bias in biases],
            torch.from_numpy(shapes),
            torch.tensor([ACTIVATIONS.index(name) for name in activations]),
        )

    @classmethod
    def cat(cls, batches: Sequence["MLPBatch"]) -> "MLPBatch":
        """The networks of all batches, in order, as copies."""
        depth = max(len(batch.weights) for batch in batches)
        shapes = torch.cat([F.pad(b.shapes, (0, 0, 0, depth - b.shapes.shape[1])) for b in batches])
        sizes, like = _sizes(shapes), batches[0].weights[0]
        weights = [like.new_zeros(len(shapes), o, i) for i, o in itertools.pairwise(sizes)]
        biases = [like.new_zeros(len(shapes), out) for out in sizes[1:]]
        start = 0
        for batch in batches:
            rows = slice(start, start + len(batch))
            for layer, (weight, bias) in enumerate(zip(batch.weights, batch.biases, strict=True)):
                out = min(weight.shape[1], sizes[layer + 1])
                fan_in = min(weight.shape[2], sizes[layer])
                weights[layer][rows, :out, :fan_in] = weight[:, :out, :fan_in]
                biases[layer][rows, :out] = bias[:, :out]
            start += len(batch)
        kinds = torch.cat([batch.activations for batch in batches])
        return cls(weights, biases, shapes, kinds).cropped()

    def __len__(self) -> int:
        return len(self.activations)

    @cached_property
    def depths(self) -> Tensor:
        """How many hidden layers each network has, int64 [B]: the index of its output layer."""
        return (self.shapes[..., 0] > 0).sum(1) - 1

    @property
    def act_dims(self) -> Tensor:
        """How many actions each network has, int64 [B]."""
        return self.shapes[torch.arange(len(self)), self.depths, 0]

    @cached_property
    def act_dim(self) -> int:
        """The most actions of any network."""
        return int(self.act_dims.max())

    @property
    def obs_dim(self) -> int:
        """The most observations of any network."""
        return int(self.shapes[:, 0, 1].max())

    def topology(self, network: int) -> Topology:
        """The topology of one network."""
        layers = self.shapes[network, : int(self.depths[network]) + 1].tolist()
        *hidden, act_dim = (out for out, _ in layers)
        name = ACTIVATIONS[int(self.activations[network])]
        return Topology(layers[0][1], tuple(hidden), act_dim, name)

    def layers(self, network: int) -> list[Layer]:
        """One network's layers without padding, as views."""
        shapes = self.shapes[network, : int(self.depths[network]) + 1].tolist()
        return [
            (weight[network, :out, :fan_in], bias[network, :out])
            for weight, bias, (out, fan_in) in zip(self.weights, self.biases, shapes, strict=False)
        ]

    def to_policies(
        self,
        *,
        task: TaskInfo,
        source: str,
        ids: Sequence[str],
        normalizer: ObservationNormalizer | None = None,
        metadata: Sequence[dict[str, str]] | None = None,
    ) -> list["Policy"]:
        """A policy of each network, with these ids, for raw observations.

        With a normalizer the networks are for normalized observations, and it is folded in.
        """
        from nnit_dist.core.policy import Policy  # reads files: training steps need torch alone

        policies = []
        for network, name in enumerate(ids):
            own = [(w.numpy(force=True), b.numpy(force=True)) for w, b in self.layers(network)]
            policies.append(
                Policy(
                    self.topology(network),
                    normalizer.fold(own) if normalizer else own,
                    task.name,
                    source,
                    task.control_mode,
                    name,
                    dict(metadata[network]) if metadata else {},
                )
            )
        return policies

    def select(self, networks: Tensor | Sequence[int] | slice) -> "MLPBatch":
        """The networks of these indices, or, as views, of a slice; padded as before."""
        if isinstance(networks, slice):
            known: Tensor | slice = networks
            parts = [x[networks] for x in (*self.weights, *self.biases)]
        else:
            # (A fifth of the time of indexing.)
            index = torch.as_tensor(networks)
            known, index = index.cpu(), index.to(self.weights[0].device)
            parts = [x.index_select(0, index) for x in (*self.weights, *self.biases)]
        layers = len(self.weights)
        return MLPBatch(parts[:layers], parts[layers:], self.shapes[known], self.activations[known])

    def cropped(self) -> "MLPBatch":
        """The same, as views that are padded no more than the largest network needs."""
        sizes = _sizes(self.shapes[:, : int(self.depths.max()) + 1])
        if sizes == [self.weights[0].shape[2], *(weight.shape[1] for weight in self.weights)]:
            return self
        fits = itertools.pairwise(sizes)
        return replace(
            self,
            weights=[w[:, :o, :i] for w, (i, o) in zip(self.weights, fits, strict=False)],
            biases=[b[:, :out] for b, out in zip(self.biases, sizes[1:], strict=False)],
            shapes=self.shapes[:, : len(sizes) - 1],
        )

    def to(self, device: torch.device | str) -> "MLPBatch":
        """The same networks with their weights on a device."""
        return replace(
            self,
            weights=[weight.to(device) for weight in self.weights],
            biases=[bias.to(device) for bias in self.biases],
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Outputs before clipping, [B, S, act_dim], for observations [B, S, obs_dim].

        Both are padded with zeros where a network has fewer; `obs` may leave its padding out.
        """
        first, *others = self._output_layers
        hidden = outputs = _resized(obs, self.weights[0].shape[2])
        for layer in range(len(self.weights)):
            hidden = self._linear(layer, hidden)
            if layer == first:
                outputs = _resized(hidden, self.act_dim)
            elif layer in others:
                ends = self._column(self.depths == layer, obs)
                outputs = torch.where(ends, _resized(hidden, self.act_dim), outputs)
            if layer + 1 < len(self.weights):
                hidden = self._activate(hidden)
        return outputs

    def hidden_activations(self, obs: Tensor) -> list[Tensor]:
        """Of every hidden layer [B, S, width], for observations [B, S, obs_dim].

        Zero where a network is narrower or has no such hidden layer.
        """
        hidden, activations = _resized(obs, self.weights[0].shape[2]), []
        for layer in range(len(self.weights) - 1):
            hidden = self._activate(self._linear(layer, hidden))
            has_layer = self._column(self.depths > layer, obs)
            activations.append(torch.where(has_layer, hidden, 0.0))
        return activations

    def add_noise(self, scale: float, noise: "MLPBatch") -> "MLPBatch":
        """With standard normal noise of the same shapes, times `scale` and times the rms.

        The rms is that of each network's matrix, or vector of biases, in each layer.
        """
        out, fan_in = self.shapes.to(self.weights[0].device, non_blocking=True).unbind(-1)
        weights = zip(self.weights, noise.weights, (out * fan_in).unbind(1), strict=True)
        biases = zip(self.biases, noise.biases, out.unbind(1), strict=True)
        return replace(
            self,
            weights=[_with_noise(*layer, scale) for layer in weights],
            biases=[_with_noise(*layer, scale) for layer in biases],
        )

    def _linear(self, layer: int, hidden: Tensor) -> Tensor:
        """[B, S, in] -> [B, S, out] of one layer, before its activation."""
        weight, bias = self.weights[layer], self.biases[layer]
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    def _activate(self, values: Tensor) -> Tensor:
        """[B, S, width], each network's by its own activation."""
        kinds = self._kinds
        activated = _FUNCTIONS[kinds[0]](values)
        for kind in kinds[1:]:
            own = self._column(self.activations == kind, values)
            activated = torch.where(own, _FUNCTIONS[kind](values), activated)
        return activated

    @cached_property
    def _kinds(self) -> list[int]:
        """The activations that there are."""
        return self.activations.unique().tolist()

    @cached_property
    def _output_layers(self) -> list[int]:
        """The layers that are some network's output layer, in order."""
        return self.depths.unique().tolist()

    def _column(self, flags: Tensor, like: Tensor) -> Tensor:
        """bool [B] -> [B, 1, 1], where the networks are computed."""
        return flags[:, None, None].to(like.device, non_blocking=True)


def _sizes(shapes: Tensor) -> list[int]:
    """Of the input and of every layer's outputs, such that all networks [B, L, 2] have room."""
    out, fan_in = shapes.amax(0).unbind(-1)
    return torch.maximum(F.pad(fan_in, (0, 1)), F.pad(out, (1, 0))).tolist()


def _resized(values: Tensor, size: int) -> Tensor:
    """Cut or padded with zeros in the last dimension."""
    more = size - values.shape[-1]
    return values if more == 0 else F.pad(values, (0, more)) if more > 0 else values[..., :size]


def _with_noise(values: Tensor, noise: Tensor, count: Tensor, scale: float) -> Tensor:
    """[B, ...] with noise, which may be padded less; `count` [B] are not padding."""
    dims = tuple(range(1, values.dim()))
    rms = (values.detach().square().sum(dims) / count.clamp(min=1)).sqrt()
    room = [n for dim in reversed(dims) for n in (0, values.shape[dim] - noise.shape[dim])]
    return values + (scale * rms)[(..., *[None] * len(dims))] * F.pad(noise, room)
