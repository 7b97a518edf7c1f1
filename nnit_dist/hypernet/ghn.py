"""The graph hypernetwork: GHN(topology, latent) -> the weights of a policy.

Nodes are the layers of the policy, connected in a chain. A decoder turns each
node's embedding into a two-dimensional field. The layer's matrix is the
field's top-left [out, in], scaled by 1/sqrt(fan_in). So neuron i of a narrow
network comes from the same place as neuron i of a wide one, and neighboring
neurons have similar weights. Such networks are called aligned.

After GHN-2 (arXiv 2110.13100) and HyperPPO (arXiv 2309.16663), whose decoders use
1x1 convolutions only; the spatial decoder is what NNiT (arXiv 2603.00180) adds.

Shapes: B networks, L layers at most, D embedding, C channels, W side of the field.
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.core.conditioning import ConditioningShape
from nnit_dist.core.mlp import MLPBatch
from nnit_dist.core.topology import ACTIVATIONS, Topology
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.decoders import MLPDecoder, SpatialDecoder, field_kind, field_size, kinds_of


def build_decoder(config: GHNConfig, size: int, kinds: int) -> SpatialDecoder | MLPDecoder:
    """The decoder of a configuration, for square fields of side `size` and `kinds` of matrices."""
    dim = config.embed_dim
    if config.decoder == "mlp":
        return MLPDecoder(dim, size, kinds)
    pointwise = config.decoder == "pointwise"
    return SpatialDecoder(
        dim, size, kinds, config.channels, smoothness=config.smoothness, pointwise=pointwise
    )


class GHN(nn.Module):
    """A hypernetwork that writes the weights of any topology with layers up to `max_width`.

    It serves `tasks` tasks. `obs_dim` and `act_dim` are the largest of any of them.
    """

    def __init__(
        self, config: GHNConfig, obs_dim: int, act_dim: int, max_width: int, *, tasks: int = 1
    ) -> None:
        super().__init__()
        self.config, self.kinds = config, kinds_of(tasks)
        self.size = field_size(max(max_width, obs_dim, act_dim))
        dim = config.embed_dim
        self.embed_node = nn.Sequential(nn.Linear(7, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.embed_latent = nn.Linear(config.latent_dim, dim)
        self.message = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.cell = nn.GRUCell(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.decoder = build_decoder(config, self.size, self.kinds)

    def forward(
        self,
        batch: list[tuple[Topology, Tensor]],
        condition: list[ConditioningShape] | None = None,
        tasks: list[int] | None = None,
    ) -> MLPBatch:
        """Write a network for every latent of every pair (topology, latents [n, latent_dim]).

        `condition` has the shape that each topology is conditioned on, by default the true one.
        `tasks` has the index of each topology's task, by default 0.
        """
        topologies, counts = [topology for topology, _ in batch], [len(z) for _, z in batch]
        z = torch.cat([z for _, z in batch])
        plan = self.plan(topologies, condition, tasks, counts).to(z.device)
        return self.write(plan, z).cropped()

    def plan(
        self,
        topologies: list[Topology],
        condition: list[ConditioningShape] | None = None,
        tasks: list[int] | None = None,
        counts: list[int] | None = None,
    ) -> "Plan":
        """Prepare the inputs of `write` for `counts` networks of each topology, by default one."""
        condition = condition or [ConditioningShape.of(topology) for topology in topologies]
        tasks, counts = tasks or [0] * len(topologies), counts or [1] * len(topologies)
        features = nn.utils.rnn.pad_sequence(
            [node_features(t) for t in condition], batch_first=True
        )
        shapes = torch.zeros(*features.shape[:2], 2, dtype=torch.int64)
        kinds = torch.zeros(features.shape[:2], dtype=torch.int64)
        for row, (topology, task) in enumerate(zip(topologies, tasks, strict=True)):
            layers = range(topology.num_layers)
            shapes[row, : len(layers)] = torch.tensor(topology.shapes)
            kinds[row, : len(layers)] = torch.tensor(
                [field_kind(topology.layer_kind(layer), task) for layer in layers]
            )
        activations = torch.tensor([ACTIVATIONS.index(t.activation) for t in topologies])
        repeats = torch.tensor(counts)
        shapes = shapes.repeat_interleave(repeats, 0)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (out, fan_in) in enumerate(shapes.flatten(0, 1).tolist()):
            if out:
                groups.setdefault(self._part(out, fan_in), []).append(index)
        return Plan(
            features.repeat_interleave(repeats, 0),
            kinds.repeat_interleave(repeats, 0),
            shapes,
            activations.repeat_interleave(repeats),
            [(part, torch.tensor(members)) for part, members in groups.items()],
        )

    def _part(self, out: int, fan_in: int) -> tuple[int, int]:
        """The part of the field to decode for a layer; on a GPU the whole field."""
        # On a GPU a single pass over all layers is the fastest.
        on_cpu = next(self.parameters()).device.type == "cpu"
        return self.decoder.part(out, fan_in) if on_cpu else (self.size, self.size)

    def write(self, plan: "Plan", z: Tensor) -> MLPBatch:
        """Write the networks of latents z [B, latent_dim], each layer padded to the whole field.

        All layers that need a part of the same size are decoded together, across tasks and
        topologies.
        """
        nodes = self.embed(plan, z)
        batch, length = nodes.shape[:2]
        weights = nodes.new_zeros(batch * length, self.size, self.size)
        biases = nodes.new_zeros(batch * length, self.size)
        shapes = plan.shapes.to(z.device, non_blocking=True)
        nodes, shapes, kinds = (x.flatten(0, 1) for x in (nodes, shapes, plan.kinds))
        for (rows, cols), members in plan.groups:
            out, fan_in = shapes[members].unbind(-1)
            kind = F.one_hot(kinds[members], self.kinds)
            field = self.decoder(nodes.index_select(0, members), kind, rows, cols)
            neurons = torch.arange(rows, device=z.device) < out[:, None]
            inputs = torch.arange(cols, device=z.device) < fan_in[:, None]
            weight, bias = (field * inputs[:, None, None] * neurons[:, None, :, None]).unbind(1)
            weights[members, :rows, :cols] = weight / fan_in[:, None, None].sqrt()
            # A neuron's bias is the second channel, averaged over the inputs.
            biases[members, :rows] = bias.sum(-1) / fan_in[:, None]
        by_layer = [list(x.unflatten(0, (batch, length)).unbind(1)) for x in (weights, biases)]
        return MLPBatch(by_layer[0], by_layer[1], plan.shapes, plan.activations)

    def embed(self, plan: "Plan", z: Tensor) -> Tensor:
        """Node embeddings [B, L, D] for z [B, latent_dim].

        One pass of messages in each direction along the chain of layers, for all networks at once.
        """
        last = ((plan.shapes[..., 0] > 0).sum(1, keepdim=True) - 1).to(z.device, non_blocking=True)
        nodes = list((self.embed_node(plan.features) + self.embed_latent(z)[:, None]).unbind(1))
        for i in range(1, len(nodes)):
            nodes[i] = self.cell(self.message(nodes[i - 1]), nodes[i])
        for i in reversed(range(len(nodes) - 1)):
            heard = self.cell(self.message(nodes[i + 1]), nodes[i])
            nodes[i] = torch.where(i < last, heard, nodes[i])
        return self.norm(torch.stack(nodes, 1))


@dataclass
class Plan:
    """Networks to write: features and kinds of their nodes, and their shapes.

    `features` is float32 [B, L, 7] and `kinds` int64 [B, L]. `shapes` and `activations` are as in
    `MLPBatch`. `groups` lists each size of a field's part with the layers that need it, as int64
    indices into [B * L].
    """

    features: Tensor
    kinds: Tensor
    shapes: Tensor
    activations: Tensor
    groups: list[tuple[tuple[int, int], Tensor]]

    def to(self, device: torch.device) -> "Plan":
        """The same plan on a device."""
        return replace(
            self,
            features=self.features.to(device),
            kinds=self.kinds.to(device),
            groups=[(part, members.to(device)) for part, members in self.groups],
        )


def node_features(condition: ConditioningShape) -> Tensor:
    """Features float32 [L, 7]: log2 of fan-in and fan-out, depth from both ends, one-hot kind.

    The logarithms are not scaled down, so that one unit more or less makes a difference.
    """
    last = len(condition.dims) - 2
    rows = [
        [
            math.log2(fan_in) - 5,
            math.log2(out) - 5,
            place / 4,
            (condition.depth - place) / 4,
            float(i == 0),
            float(0 < i < last),
            float(i == last),
        ]
        for i, ((fan_in, out), place) in enumerate(
            zip(itertools.pairwise(condition.dims), condition.layer_positions, strict=True)
        )
    ]
    return torch.tensor(rows)
