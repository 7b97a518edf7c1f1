"""The graph hypernetwork: GHN(topology, latent) -> the weights of a policy.

Nodes are the layers of the policy, joined in a chain. Each node's embedding is
grown by spatial convolutions to a two-dimensional field, and the layer's matrix
is the field's top-left [out, in], scaled by 1/sqrt(fan_in). Neuron i of a narrow
network so comes from the same place as neuron i of a wide one, and neighbouring
neurons have similar weights: that is what "aligned" means here.

After GHN-2 (arXiv 2110.13100) and HyperPPO (arXiv 2309.16663), whose decoders use
1x1 convolutions only; the spatial decoder is what NNiT (arXiv 2603.00180) adds.

Shapes: B latents, L layers of the policy, D embedding, C channels, H x W field.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.topology import Topology

Layers = list[tuple[Tensor, Tensor]]
BASE = 4
KINDS = 3  # input, hidden and output matrices have their own positional maps


class GHNConfig(BaseModel):
    """Size of the hypernetwork."""

    model_config = ConfigDict(extra="forbid")

    latent_dim: int = Field(8, gt=0, description="size of a teacher's latent z")
    embed_dim: int = Field(96, gt=0, description="size of a node's embedding")
    channels: list[int] = Field([96, 64, 48, 32], description="channels from the coarsest scale up")
    smoothness: float = Field(
        3.0, gt=0, description="correlation length of the initial positional maps, in weights"
    )


class GHN(nn.Module):
    """Writes the weights of any topology with layers up to `max_width`."""

    def __init__(self, config: GHNConfig, obs_dim: int, act_dim: int, max_width: int) -> None:
        super().__init__()
        self.config = config
        self.size = _field_size(max(max_width, obs_dim, act_dim))
        dim = config.embed_dim
        self.embed_node = nn.Sequential(nn.Linear(7, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.embed_latent = nn.Linear(config.latent_dim, dim)
        self.message = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.cell = nn.GRUCell(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.decoder = SpatialDecoder(config, self.size)

    def forward(
        self, batch: list[tuple[Topology, Tensor]], told: list[Sequence[float]] | None = None
    ) -> list[Layers]:
        """For each (topology, z [B, latent_dim]): weights [B, out, in] and biases [B, out].

        `told` are the sizes, input to output, that the nodes hear of; those of the topology by
        default. All layers that need a part of the field of the same size, of whatever
        topology and depth, are decoded together.
        """
        nodes = self.embed(batch, told or [topology.dims for topology, _ in batch])
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, (topology, _) in enumerate(batch):
            for layer, shape in enumerate(topology.shapes):
                groups.setdefault(self.decoder.part(*shape), []).append((number, layer))
        found: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in batch]
        for part, members in groups.items():
            embeddings = [nodes[number][:, layer] for number, layer in members]
            counts = [len(e) for e in embeddings]
            kinds = [_kind(batch[number][0], layer) for number, layer in members]
            kind = F.one_hot(torch.tensor(kinds), KINDS).repeat_interleave(
                torch.tensor(counts), dim=0
            )
            fields = self.decoder(torch.cat(embeddings), kind, *part).split(counts)
            for (number, layer), field in zip(members, fields, strict=True):
                out, fan_in = batch[number][0].shapes[layer]
                weight, bias = field[:, :, :out, :fan_in].unbind(1)
                # A bias belongs to a neuron: the second channel, averaged over the inputs.
                found[number][layer] = weight / math.sqrt(fan_in), bias.mean(-1)
        return [[layers[i] for i in range(len(layers))] for layers in found]

    def embed(
        self, batch: list[tuple[Topology, Tensor]], told: list[Sequence[float]]
    ) -> list[Tensor]:
        """Node embeddings [B, L, D] of each (topology, z [B, latent_dim]).

        One pass of messages in each direction along the chain of layers, for all topologies
        at once.
        """
        counts = torch.tensor([len(z) for _, z in batch])
        lengths = [topology.num_layers for topology, _ in batch]
        z = torch.cat([z for _, z in batch])
        features = nn.utils.rnn.pad_sequence(
            [node_features(dims) for dims in told], batch_first=True
        )
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


def _kind(topology: Topology, layer: int) -> int:
    return 0 if layer == 0 else 2 if layer == topology.depth else 1


def node_features(dims: Sequence[float]) -> Tensor:
    """[L, 7]: log fan-in and fan-out, depth from both ends, and the kind of each layer."""
    last = len(dims) - 2
    rows = [
        [
            math.log(fan_in) / 4 - 1,
            math.log(out) / 4 - 1,
            i / 4,
            (last - i) / 4,
            float(i == 0),
            float(0 < i < last),
            float(i == last),
        ]
        for i, (fan_in, out) in enumerate(itertools.pairwise(dims))
    ]
    return torch.tensor(rows)


class SpatialDecoder(nn.Module):
    """Grows a node's embedding to a field, doubling its size at each scale.

    At every scale: upsample, 3x3 convolution, a learned positional map added, FiLM by the
    node's embedding. Without the maps and the FiLM, upsampling and convolutions cannot place
    detail. The maps start as band-limited noise, so that the field starts smooth.
    Only the part of the field that a layer needs is decoded, exactly as the whole would be.
    """

    def __init__(self, config: GHNConfig, size: int) -> None:
        super().__init__()
        self.size = size
        scales = int(math.log2(size // BASE))
        channels = [*config.channels[:scales], *config.channels[-1:] * scales][:scales]
        self.stem = nn.Linear(config.embed_dim, channels[0] * BASE * BASE)
        self.blocks = nn.ModuleList()
        fan_in = channels[0]
        for scale, out in enumerate(channels):
            side = BASE * 2 ** (scale + 1)
            length = config.smoothness * side / size
            self.blocks.append(DecoderBlock(config.embed_dim, fan_in, out, side, length))
            fan_in = out
        self.head = nn.Conv2d(fan_in, 2, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1.5 / math.sqrt(fan_in * 9))
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def part(self, out: int, fan_in: int) -> tuple[int, int]:
        """The size of the part to decode for a layer: few sizes, so that many layers share one."""
        step = self.size // BASE
        return math.ceil(out / step) * step, math.ceil(fan_in / step) * step

    def forward(self, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """node [B, D], one-hot kind [B, KINDS] -> field [B, 2, rows, cols] of unit scale.

        Channel 0 is the weight, channel 1 the bias.
        """
        x = rearrange(self.stem(node), "b (c h w) -> b c h w", h=BASE, w=BASE)
        x = x.contiguous(memory_format=torch.channels_last)  # the step takes 0.75 of the time
        sizes = [(min(rows + 1, self.size), min(cols + 1, self.size))]  # + 1: the head's kernel
        for block in reversed(self.blocks[1:]):
            assert isinstance(block, DecoderBlock)
            height, width = sizes[0]
            sizes.insert(0, (block.needs(height), block.needs(width)))
        for block, (height, width) in zip(self.blocks, sizes, strict=True):
            x = block(x, node, kind.to(node), height, width)
        return self.head(x)[:, :, :rows, :cols]


class DecoderBlock(nn.Module):
    """Upsample by two, convolve, add the positional map, modulate by the node."""

    def __init__(self, dim: int, fan_in: int, out: int, side: int, length: float) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(fan_in, out, 3, padding=1)
        self.film = nn.Linear(dim, 2 * out)
        self.maps = nn.Parameter(smooth_noise(KINDS, out, side, length))
        nn.init.normal_(self.film.weight, std=0.5 / math.sqrt(dim))
        nn.init.zeros_(self.film.bias)

    def needs(self, size: int) -> int:
        """Rows of the input that `size` rows of the output depend on."""
        return min(self.side // 2, (size + 1) // 2 + 1)

    def forward(self, x: Tensor, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        # One row and column more than asked for, for the kernel.
        x = self.conv(x[:, :, : rows + 1, : cols + 1])[:, :, :rows, :cols]
        x = x + torch.tensordot(kind, self.maps[:, :, :rows, :cols], 1)
        gain, shift = self.film(node)[:, :, None, None].chunk(2, dim=1)
        return F.silu(x * (1 + gain) + shift)


def smooth_noise(kinds: int, channels: int, side: int, length: float) -> Tensor:
    """Unit-variance Gaussian noise [kinds, channels, side, side], correlated over `length`."""
    noise = torch.randn(kinds * channels, 1, side, side)
    if length > 0.5:
        reach = max(1, math.ceil(2 * length))
        offsets = torch.arange(-reach, reach + 1)
        kernel = torch.exp(-0.5 * (offsets / (length / 2)) ** 2)
        pad = [reach] * 4
        noise = F.pad(noise, pad, mode="replicate" if reach >= side else "reflect")
        noise = F.conv2d(noise, kernel.view(1, 1, -1, 1))
        noise = F.conv2d(noise, kernel.view(1, 1, 1, -1))
    noise = noise / noise.std()
    return rearrange(noise, "(k c) 1 h w -> k c h w", k=kinds)


def _field_size(needed: int) -> int:
    """The smallest size that doublings of the base reach."""
    return BASE * 2 ** max(1, math.ceil(math.log2(needed / BASE)))


def apply_layers(layers: Layers, obs: Tensor) -> Tensor:
    """Outputs [B, S, act_dim] of B networks on observations [B, S, obs_dim]."""
    hidden = obs
    for i, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))
        if i < len(layers) - 1:
            hidden = torch.tanh(hidden)
    return hidden
