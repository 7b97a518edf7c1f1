"""The graph hypernetwork: GHN(topology, latent) -> the weights of a policy.

Nodes are the layers of the policy, joined in a chain. Each node's embedding is
grown by a decoder to a two-dimensional field, and the layer's matrix
is the field's top-left [out, in], scaled by 1/sqrt(fan_in). Neuron i of a narrow
network so comes from the same place as neuron i of a wide one, and neighbouring
neurons have similar weights: that is what "aligned" means here.

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
from nnit_dist.core.mlp import ACTIVATION_NAMES, MLPBatch
from nnit_dist.core.topology import Topology
from nnit_dist.hypernet.config import GHNConfig
from nnit_dist.hypernet.decoders import MLPDecoder, SpatialDecoder, field_kind, field_size, kinds_of


def build_decoder(config: GHNConfig, size: int, kinds: int) -> SpatialDecoder | MLPDecoder:
    """The decoder of nodes to fields of `size`, of as many `kinds`."""
    dim = config.embed_dim
    if config.decoder == "mlp":
        return MLPDecoder(dim, size, kinds)
    pointwise = config.decoder == "pointwise"
    return SpatialDecoder(
        dim, size, kinds, config.channels, smoothness=config.smoothness, pointwise=pointwise
    )


class GHN(nn.Module):
    """Writes the weights of any topology with layers up to `max_width`, for each of its tasks.

    `obs_dim` and `act_dim` are the largest of any task.
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
        """For each (topology, z [B, latent_dim]) B networks, in order.

        `condition` is what the nodes are conditioned on, the true shapes by default; `tasks` are
        the numbers of their tasks, the first by default.
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
        """What `write` has to know of `counts` networks of each topology, one by default."""
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
        activations = torch.tensor([ACTIVATION_NAMES.index(t.activation) for t in topologies])
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
        """The part of the field to decode for a layer; on a GPU one pass for all is the fastest."""
        on_cpu = next(self.parameters()).device.type == "cpu"
        return self.decoder.part(out, fan_in) if on_cpu else (self.size, self.size)

    def write(self, plan: "Plan", z: Tensor) -> MLPBatch:
        """The networks for z [B, latent_dim], each layer padded to the whole field.

        All layers that need a part of the field of the same size, of whatever task, topology and
        depth, are decoded together.
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
            # A bias belongs to a neuron: the second channel, averaged over the inputs.
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
    """Networks to write: what their nodes hear, and which part of a field each layer is.

    `features` float32 [B, L, 7], `kinds` int64 [B, L], `shapes` and `activations` as in `MLPBatch`,
    and for every size of a part the layers that need it, as indices int64 into [B * L].
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
    """[L, 7]: log fan-in and fan-out, depth from both ends, and the kind of each layer.

    Doublings of width are as far apart as 1: a unit more or less must be heard.
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
