"""EfficientViT-3D of the B series as anybody would write it in PyTorch: the peer of our models.

Written from the paper's description with `torch.nn` alone, and with some care: residuals are
evaluated once, activations work in place where nothing is lost, time is padded by `torch.cat`,
which is up to nine times as fast as `F.pad(mode="replicate")`. Parameters stand in the order of
ours, so that `load` can copy them by position; that both give the same logits is checked before any
timing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Act(nn.Module):
    """Hardswish, in place where no gradient is wanted: in training that would cost a copy."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x, inplace=not self.training)


class TimePaddedConv3d(nn.Conv3d):
    """A convolution that keeps T, H and W at stride 1 and repeats the first and the last frame."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        around = kernel // 2
        super().__init__(
            in_channels, out_channels, kernel, stride, (0, around, around), 1, groups, bias
        )
        self.repeats = around

    def forward(self, x: Tensor) -> Tensor:
        first, last = x[:, :, :1], x[:, :, -1:]
        return super().forward(torch.cat([first] * self.repeats + [x] + [last] * self.repeats, 2))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out


class LiteMLA(nn.Module):
    """Multi-scale linear attention, concatenated and computed in float32 as the original does."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.eps = 1e-15
        self.qkv = nn.Conv3d(channels, 3 * channels, 1, bias=False)
        self.aggregate = nn.Sequential(
            TimePaddedConv3d(3 * channels, 3 * channels, 5, groups=3 * channels),
            nn.Conv3d(3 * channels, 3 * channels, 1, groups=3 * channels // head_dim, bias=False),
        )
        self.project = conv(channels * 2, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        scales = torch.cat([qkv, self.aggregate(qkv)], 1)
        out: Tensor = self.project(linear_attention(scales, self.head_dim, self.eps))
        return out


def linear_attention(
    qkv: Tensor, head_dim: int, eps: float = 1e-15, wide: torch.dtype = torch.float32
) -> Tensor:
    """The eager float32 chain of the original: pad v with ones, two products, one division.

    (B, heads * 3 * head_dim, T, H, W) to (B, heads * head_dim, T, H, W).
    """
    batch, _, *space = qkv.shape
    heads = qkv.to(wide).reshape(batch, -1, 3 * head_dim, space[0] * space[1] * space[2])
    q, k, v = heads.split(head_dim, dim=2)
    q, k = F.relu(q), F.relu(k)
    v = F.pad(v, (0, 0, 0, 1), value=1.0)
    out = torch.matmul(torch.matmul(v, k.transpose(-1, -2)), q)
    out = out[:, :, :-1] / (out[:, :, -1:] + eps)
    return out.reshape(batch, -1, *space).to(qkv.dtype)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: tuple[int, int, int] = (1, 1, 1),
    groups: int = 1,
    *,
    norm: bool = True,
    act: bool = True,
) -> nn.Sequential:
    """Convolution, then batch norm, or none and a bias instead, then Hardswish or none."""
    layer: nn.Module
    if kernel == 1:
        layer = nn.Conv3d(in_channels, out_channels, 1, bias=not norm)
    else:
        layer = TimePaddedConv3d(in_channels, out_channels, kernel, stride, groups, bias=not norm)
    norms = [nn.BatchNorm3d(out_channels)] if norm else []
    return nn.Sequential(layer, *norms, *([Act()] if act else []))


def mbconv(
    in_channels: int, out_channels: int, stride: tuple[int, int, int], norm: bool
) -> list[nn.Module]:
    """Inverted bottleneck: expand four times, depthwise, project."""
    middle = 4 * in_channels
    return [
        conv(in_channels, middle, norm=norm),
        conv(middle, middle, 3, stride, groups=middle, norm=norm),
        conv(middle, out_channels, act=False),
    ]


class PlainEfficientViT3D(nn.Module):
    """A network of the B series; arguments are those of a row in the paper's table."""

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        head_dim: int,
        head_widths: tuple[int, int],
        num_classes: int,
        temporal_strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, widths[0], 3, (temporal_strides[0], 2, 2))]
        for _ in range(depths[0]):
            layers.append(
                Residual(
                    conv(widths[0], widths[0], 3, groups=widths[0]),
                    conv(widths[0], widths[0], act=False),
                )
            )
        for stage in range(1, 5):
            before, width = widths[stage - 1], widths[stage]
            attends = stage >= 3
            layers += mbconv(before, width, (temporal_strides[stage], 2, 2), norm=not attends)
            for _ in range(depths[stage] if attends else depths[stage] - 1):
                if attends:
                    layers.append(Residual(LiteMLA(width, head_dim)))
                layers.append(Residual(*mbconv(width, width, (1, 1, 1), norm=not attends)))
        layers.append(conv(widths[-1], head_widths[0]))
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(*head_widths, bias=False)
        self.norm = nn.LayerNorm(head_widths[1])
        self.act = Act()
        self.classifier = nn.Linear(head_widths[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x).mean((2, 3, 4))
        logits: Tensor = self.classifier(self.act(self.norm(self.hidden(x))))
        return logits


def load(plain: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies a state dict by position; every pair of tensors must have one shape."""
    own = plain.state_dict()
    with torch.no_grad():
        for mine, (name, value) in zip(own.values(), weights.items(), strict=True):
            if mine.shape != value.shape:
                raise ValueError(f"{name}: {tuple(value.shape)} does not fit {tuple(mine.shape)}")
            mine.copy_(value)
