"""The graph hypernetwork: GHN(topology, latent) -> the weights of a policy.

Nodes are the layers of the policy, joined in a chain. Each node's embedding is
grown by a decoder to a two-dimensional field, and the layer's matrix
is the field's top-left [out, in], scaled by 1/sqrt(fan_in). Neuron i of a narrow
network so comes from the same place as neuron i of a wide one, and neighbouring
neurons have similar weights: that is what "aligned" means here.

After GHN-2 (arXiv 2110.13100) and HyperPPO (arXiv 2309.16663), whose decoders use
1x1 convolutions only; the spatial decoder is what NNiT (arXiv 2603.00180) adds.

Shapes: B latents, L layers of the policy, D embedding, C channels, H x W field.
"""

import itertools
import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.align.decoders import (
    MLPDecoder,
    SpatialDecoder,
    field_kind,
    field_size,
    kinds_of,
)
from nnit_dist.align.told import Told
from nnit_dist.topology import Topology

Layers = list[tuple[Tensor, Tensor]]


class GHNConfig(BaseModel):
    """Size of the hypernetwork."""

    model_config = ConfigDict(extra="forbid")

    latent_dim: int = Field(8, gt=0, description="size of a teacher's latent z")
    embed_dim: int = Field(96, gt=0, description="size of a node's embedding")
    decoder: Literal["spatial", "pointwise", "mlp"] = Field(
        "spatial", description="how a field is written; the others are for comparison"
    )
    channels: list[int] = Field([96, 64, 48, 32], description="channels from the coarsest scale up")
    smoothness: float = Field(
        3.0, gt=0, description="correlation length of the initial positional maps, in weights"
    )


def build_decoder(config: GHNConfig, size: int, kinds: int) -> SpatialDecoder | MLPDecoder:
    """The decoder of nodes to fields of `size`, of as many `kinds`."""
    dim = config.embed_dim
    if config.decoder == "mlp":
        return MLPDecoder(dim, size, kinds)
    pointwise = config.decoder == "pointwise"
    return SpatialDecoder(dim, size, kinds, config.channels, config.smoothness, pointwise)


class GHN(nn.Module):
    """Writes the weights of any topology with layers up to `max_width`, for each of its tasks.

    `obs_dim` and `act_dim` are the largest of any task.
    """

    def __init__(
        self, config: GHNConfig, obs_dim: int, act_dim: int, max_width: int, tasks: int = 1
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
        told: list[Told] | None = None,
        tasks: list[int] | None = None,
    ) -> list[Layers]:
        """For each (topology, z [B, latent_dim]): weights [B, out, in] and biases [B, out].

        `told` is what the nodes hear of sizes and depth, the truth by default; `tasks` are the
        numbers of their tasks, the first by default. All layers that need a part of the field of
        the same size, of whatever task, topology and depth, are decoded together.
        """
        nodes = self.embed(batch, told or [Told.of(topology) for topology, _ in batch])
        tasks = tasks or [0] * len(batch)
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, (topology, _) in enumerate(batch):
            for layer, shape in enumerate(topology.shapes):
                groups.setdefault(self.decoder.part(*shape), []).append((number, layer))
        found: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in batch]
        for part, members in groups.items():
            embeddings = [nodes[number][:, layer] for number, layer in members]
            counts = [len(e) for e in embeddings]
            kinds = [
                field_kind(batch[number][0].layer_kind(layer), tasks[number])
                for number, layer in members
            ]
            kind = F.one_hot(torch.tensor(kinds), self.kinds).repeat_interleave(
                torch.tensor(counts), dim=0
            )
            fields = self.decoder(torch.cat(embeddings), kind, *part).split(counts)
            for (number, layer), field in zip(members, fields, strict=True):
                out, fan_in = batch[number][0].shapes[layer]
                weight, bias = field[:, :, :out, :fan_in].unbind(1)
                # A bias belongs to a neuron: the second channel, averaged over the inputs.
                found[number][layer] = weight / math.sqrt(fan_in), bias.mean(-1)
        return [[layers[i] for i in range(len(layers))] for layers in found]

    def embed(self, batch: list[tuple[Topology, Tensor]], told: list[Told]) -> list[Tensor]:
        """Node embeddings [B, L, D] of each (topology, z [B, latent_dim]).

        One pass of messages in each direction along the chain of layers, for all topologies
        at once.
        """
        counts = torch.tensor([len(z) for _, z in batch])
        lengths = [topology.num_layers for topology, _ in batch]
        z = torch.cat([z for _, z in batch])
        features = nn.utils.rnn.pad_sequence([node_features(t) for t in told], batch_first=True)
        features = features.to(z).repeat_interleave(counts.to(z.device), dim=0)
        last = torch.tensor(lengths).repeat_interleave(counts).to(z.device)[:, None] - 1
        nodes = list((self.embed_node(features) + self.embed_latent(z)[:, None]).unbind(1))
        for i in range(1, len(nodes)):
            nodes[i] = self.cell(self.message(nodes[i - 1]), nodes[i])
        for i in reversed(range(len(nodes) - 1)):
            heard = self.cell(self.message(nodes[i + 1]), nodes[i])
            nodes[i] = torch.where(i < last, heard, nodes[i])
        joined = self.norm(torch.stack(nodes, 1)).split(counts.tolist())
        return [part[:, :length] for part, length in zip(joined, lengths, strict=True)]


def node_features(told: Told) -> Tensor:
    """[L, 7]: log fan-in and fan-out, depth from both ends, and the kind of each layer.

    Doublings of width are as far apart as 1: a unit more or less must be heard.
    """
    last = len(told.dims) - 2
    rows = [
        [
            math.log2(fan_in) - 5,
            math.log2(out) - 5,
            place / 4,
            (told.depth - place) / 4,
            float(i == 0),
            float(0 < i < last),
            float(i == last),
        ]
        for i, ((fan_in, out), place) in enumerate(
            zip(itertools.pairwise(told.dims), told.places, strict=True)
        )
    ]
    return torch.tensor(rows)


def apply_layers(layers: Layers, obs: Tensor) -> Tensor:
    """Outputs [B, S, act_dim] of B networks on observations [B, S, obs_dim]."""
    hidden = obs
    for i, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))
        if i < len(layers) - 1:
            hidden = torch.tanh(hidden)
    return hidden
