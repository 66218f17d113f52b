"""Small networks in the style of others, of plain PyTorch modules: what accelerate works on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm_act(channels: int, activation: nn.Module | None) -> list[nn.Module]:
    return [nn.BatchNorm3d(channels), *([activation] if activation is not None else [])]


class SqueezeExcite(nn.Module):
    """Scales channels by what the average over time and space says of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, max(channels // 4, 4), 1)
        self.expand = nn.Conv3d(max(channels // 4, 4), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.reduce(x.mean((2, 3, 4), keepdim=True)))
        return x * torch.sigmoid(self.expand(scale))


class X3DBlock(nn.Module):
    """Expand, depthwise 3x3x3, squeeze and excite, project; as in X3D (arXiv:2004.04730)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        middle = channels * 2
        self.expand = nn.Sequential(
            nn.Conv3d(channels, middle, 1, bias=False), *_norm_act(middle, nn.ReLU())
        )
        self.depthwise = nn.Conv3d(
            middle, middle, 3, (1, stride, stride), padding=1, groups=middle, bias=False
        )
        self.norm = nn.BatchNorm3d(middle)
        self.excite = SqueezeExcite(middle)
        self.project = nn.Sequential(nn.Conv3d(middle, out, 1, bias=False), nn.BatchNorm3d(out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.excite(self.norm(self.depthwise(self.expand(x)))))
        y = self.project(y)
        return F.relu(x + y) if self.residual else F.relu(y)


class X3DLike(nn.Module):
    """A stem of a spatial and a temporal depthwise convolution, then two stages."""

    depthwise = ("stem.1", "stages.0.depthwise", "stages.1.depthwise", "stages.2.depthwise")

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.Conv3d(8, 8, (5, 1, 1), padding=(2, 0, 0), groups=8, bias=False),
            *_norm_act(8, nn.ReLU()),
        )
        self.stages = nn.Sequential(X3DBlock(8, 8, 1), X3DBlock(8, 16, 2), X3DBlock(16, 16, 1))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3, 4)))


class CausalConv(nn.Module):
    """A depthwise convolution that pads the past only, with frames of zeros in front."""

    def __init__(self, channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.past = kernel[0] - 1
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(channels, channels, kernel, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 0, self.past, 0)))


class MoViNetLike(nn.Module):
    """Causal depthwise convolutions 5x3x3 and (1, 5, 5), as in MoViNet (arXiv:2103.11511)."""

    depthwise = ("first.conv", "second.conv", "third")

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 16, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.first = CausalConv(16, (5, 3, 3))
        self.norm = nn.BatchNorm3d(16)
        self.mix = nn.Conv3d(16, 24, 1)
        self.second = CausalConv(24, (1, 5, 5))
        self.third = nn.Conv3d(24, 24, 3, padding="same", groups=24)
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.first(self.stem(x))))
        x = F.hardswish(self.second(self.mix(x)))
        return self.head(self.third(x).mean((2, 3, 4)))
