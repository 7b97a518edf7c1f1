"""Decoders: from a node's embedding to the field that contains its layer's weights.

The spatial decoder has 3x3 convolutions, so that neighboring weights depend on each other. NNiT
(arXiv 2603.00180) adds it to hypernetworks. Two decoders serve for comparison: the same with 1x1
convolutions and without smoothing, and an MLP, to which the "convolutional" decoders of GHN-2 and
HyperPPO are equivalent for a matrix.

Shapes: B nodes, D embedding, C channels, K kinds of matrices, H x W field.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nnit_dist.core.topology import HIDDEN, OUTPUT

BASE = 4


def kinds_of(tasks: int) -> int:
    """Number of kinds of matrices; each kind has its own positional maps, see `field_kind`."""
    return 1 + 2 * tasks


def field_kind(layer_kind: int, task: int) -> int:
    """The kind of a layer's matrix.

    All hidden layers are of one kind. The input and the output layer of each task are two more, as
    observations and actions have different meanings in different tasks. The kinds of later tasks
    come last, so that a task can be added to a trained decoder.
    """
    if layer_kind == HIDDEN or task == 0:
        return layer_kind
    return 2 * task + 1 + (layer_kind == OUTPUT)


class SpatialDecoder(nn.Module):
    """Decodes a node's embedding to a field whose size doubles at each scale.

    Each scale upsamples, convolves (3x3), adds a learned positional map, and applies FiLM by the
    node's embedding. Upsampling and convolutions alone cannot place detail. The maps start as
    band-limited noise, so that the field starts smooth. A part of the field that is decoded alone
    has the same values as in the whole field.

    `pointwise` removes everything that makes neighboring weights alike: it uses 1x1 convolutions,
    maps of white noise, and upsampling by repetition.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        kinds: int,
        channels: list[int],
        *,
        smoothness: float,
        pointwise: bool,
    ) -> None:
        super().__init__()
        self.size, kernel = size, 1 if pointwise else 3
        scales = int(math.log2(size // BASE))
        channels = [*channels[:scales], *channels[-1:] * scales][:scales]
        self.stem = nn.Linear(dim, channels[0] * BASE * BASE)
        self.blocks = nn.ModuleList()
        fan_in = channels[0]
        for scale, out in enumerate(channels):
            side = BASE * 2 ** (scale + 1)
            length = 0.0 if pointwise else smoothness * side / size
            self.blocks.append(
                DecoderBlock(dim, fan_in, out, kinds, side=side, length=length, kernel=kernel)
            )
            fan_in = out
        self.head = nn.Conv2d(fan_in, 2, kernel, padding=kernel // 2)
        nn.init.normal_(self.head.weight, std=1.5 / math.sqrt(fan_in * kernel**2))
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def part(self, out: int, fan_in: int) -> tuple[int, int]:
        """The size (rows, columns) of the part to decode for a layer.

        There are few sizes, so that many layers can be decoded together.
        """
        step = self.size // BASE
        return math.ceil(out / step) * step, math.ceil(fan_in / step) * step

    def forward(self, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """Decode nodes [B, D] of one-hot kinds [B, K] to fields [B, 2, rows, cols] of unit scale.

        Channel 0 is the weight, channel 1 the bias.
        """
        x = rearrange(self.stem(node), "b (c h w) -> b c h w", h=BASE, w=BASE)
        x = x.contiguous(memory_format=torch.channels_last)  # a step takes 0.75 of the time
        sizes = [(min(rows + 1, self.size), min(cols + 1, self.size))]  # + 1: the head's kernel
        for block in reversed(self.blocks[1:]):
            assert isinstance(block, DecoderBlock)
            height, width = sizes[0]
            sizes.insert(0, (block.needs(height), block.needs(width)))
        for block, (height, width) in zip(self.blocks, sizes, strict=True):
            x = block(x, node, kind.to(node), height, width)
        return self.head(x)[:, :, :rows, :cols]


class DecoderBlock(nn.Module):
    """Upsampling by two, convolution, positional map, and FiLM by the node's embedding."""

    def __init__(
        self, dim: int, fan_in: int, out: int, kinds: int, *, side: int, length: float, kernel: int
    ) -> None:
        super().__init__()
        self.side, self.smooth = side, kernel > 1
        self.conv = nn.Conv2d(fan_in, out, kernel, padding=kernel // 2)
        self.film = FiLM(dim, 2 * out)
        self.maps = nn.Parameter(torch.empty(kinds, out, side, side))
        if not self.maps.is_meta:  # on `meta` this would take a second
            self.maps.data = smooth_noise(kinds, out, side, length)
        nn.init.normal_(self.film.weight, std=0.5 / math.sqrt(dim))
        nn.init.zeros_(self.film.bias)

    def needs(self, size: int) -> int:
        """Rows of the input that `size` rows of the output depend on."""
        return min(self.side // 2, (size + 1) // 2 + 1)

    def forward(self, x: Tensor, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """Upsampled fields [B, C, rows, cols] for nodes [B, D] of one-hot kinds [B, K]."""
        if self.smooth:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            x = F.interpolate(x, scale_factor=2)
        # The kernel reads one row and one column beyond those asked for.
        x = self.conv(x[:, :, : rows + 1, : cols + 1])[:, :, :rows, :cols]
        x = x + torch.tensordot(kind, self.maps[:, :, :rows, :cols], 1)
        gain, shift = self.film(node)[:, :, None, None].chunk(2, dim=1)
        return F.silu(x * (1 + gain) + shift)


class FiLM(nn.Linear):
    """Linear layer whose outputs are a gain and then a shift for each channel (arXiv 1709.07871).

    A warm start extends each of the two `parts` of its outputs on its own.
    """

    parts = 2


class MLPDecoder(nn.Module):
    """Decodes every weight of the field independently, by a two-layer MLP."""

    def __init__(self, dim: int, size: int, kinds: int, hidden: int = 224) -> None:
        super().__init__()
        self.size = size
        self.mlp = nn.Sequential(
            nn.Linear(dim + kinds, hidden), nn.SiLU(), nn.Linear(hidden, size * size + size)
        )

    def part(self, out: int, fan_in: int) -> tuple[int, int]:
        """The size of the whole field: one matrix product computes it."""
        return self.size, self.size

    def forward(self, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """As `SpatialDecoder.forward`."""
        values = self.mlp(torch.cat([node, kind.to(node)], 1))
        weight, bias = values.split([self.size**2, self.size], 1)
        weight = weight.unflatten(1, (self.size, self.size))
        field = torch.stack([weight, bias[:, :, None].expand_as(weight)], 1)
        return field[:, :, :rows, :cols]


def smooth_noise(kinds: int, channels: int, side: int, length: float) -> Tensor:
    """Gaussian noise [kinds, channels, side, side] of unit variance and correlation `length`."""
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


def field_size(needed: int) -> int:
    """The smallest field size of at least `needed`: `BASE` doubled once or more."""
    return BASE * 2 ** max(1, math.ceil(math.log2(needed / BASE)))
