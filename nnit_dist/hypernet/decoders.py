"""Decoders: from a node's embedding to the field that its layer's weights are cut from.

The spatial decoder has 3x3 convolutions, so that neighbouring weights depend on each other; it
is what NNiT (arXiv 2603.00180) adds to hypernetworks. For comparison, the same with 1x1
convolutions and no smoothing, and an MLP, which is what the "convolutional" decoders of GHN-2
and HyperPPO come to for a matrix.

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
    """How many kinds of matrices have positional maps of their own: see `field_kind`."""
    return 1 + 2 * tasks


def field_kind(layer_kind: int, task: int) -> int:
    """Hidden matrices are of one kind; input and output matrices are of one kind each a task.

    What an observation or an action means differs from task to task. Those of further tasks come
    last, so that a task can be added to a trained decoder.
    """
    if layer_kind == HIDDEN or task == 0:
        return layer_kind
    return 2 * task + 1 + (layer_kind == OUTPUT)


class SpatialDecoder(nn.Module):
    """Grows a node's embedding to a field, doubling its size at each scale.

    At every scale: upsample, 3x3 convolution, a learned positional map added, FiLM by the
    node's embedding. Without the maps and the FiLM, upsampling and convolutions cannot place
    detail. The maps start as band-limited noise, so that the field starts smooth.
    A part of the field is decoded exactly as the whole would be.

    `pointwise` takes away all that makes neighbours alike: 1x1 convolutions, maps of white noise,
    upsampling by repetition.
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
        """The size of the part to decode for a layer: few sizes, so that many layers share one."""
        step = self.size // BASE
        return math.ceil(out / step) * step, math.ceil(fan_in / step) * step

    def forward(self, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """node [B, D], one-hot kind [B, K] -> field [B, 2, rows, cols] of unit scale.

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

    def __init__(
        self, dim: int, fan_in: int, out: int, kinds: int, *, side: int, length: float, kernel: int
    ) -> None:
        super().__init__()
        self.side, self.smooth = side, kernel > 1
        self.conv = nn.Conv2d(fan_in, out, kernel, padding=kernel // 2)
        self.film = FiLM(dim, 2 * out)
        self.maps = nn.Parameter(smooth_noise(kinds, out, side, length))
        nn.init.normal_(self.film.weight, std=0.5 / math.sqrt(dim))
        nn.init.zeros_(self.film.bias)

    def needs(self, size: int) -> int:
        """Rows of the input that `size` rows of the output depend on."""
        return min(self.side // 2, (size + 1) // 2 + 1)

    def forward(self, x: Tensor, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """Fields [N, C, rows, cols] of twice the size, for nodes [N, D] and their kinds [N, K]."""
        if self.smooth:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            x = F.interpolate(x, scale_factor=2)
        # One row and column more than asked for, for the kernel.
        x = self.conv(x[:, :, : rows + 1, : cols + 1])[:, :, :rows, :cols]
        x = x + torch.tensordot(kind, self.maps[:, :, :rows, :cols], 1)
        gain, shift = self.film(node)[:, :, None, None].chunk(2, dim=1)
        return F.silu(x * (1 + gain) + shift)


class FiLM(nn.Linear):
    """A gain for every channel, and then a shift for every one (arXiv 1709.07871)."""

    parts = 2


class MLPDecoder(nn.Module):
    """Writes every weight of the field on its own, by a two-layer MLP."""

    def __init__(self, dim: int, size: int, kinds: int, hidden: int = 224) -> None:
        super().__init__()
        self.size = size
        self.mlp = nn.Sequential(
            nn.Linear(dim + kinds, hidden), nn.SiLU(), nn.Linear(hidden, size * size + size)
        )

    def part(self, out: int, fan_in: int) -> tuple[int, int]:
        """The whole: one product writes it."""
        return self.size, self.size

    def forward(self, node: Tensor, kind: Tensor, rows: int, cols: int) -> Tensor:
        """As `SpatialDecoder.forward`."""
        values = self.mlp(torch.cat([node, kind.to(node)], 1))
        weight, bias = values.split([self.size**2, self.size], 1)
        weight = weight.unflatten(1, (self.size, self.size))
        field = torch.stack([weight, bias[:, :, None].expand_as(weight)], 1)
        return field[:, :, :rows, :cols]


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


def field_size(needed: int) -> int:
    """The smallest size that doublings of the base reach."""
    return BASE * 2 ** max(1, math.ceil(math.log2(needed / BASE)))
