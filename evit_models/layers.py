"""The layers of EfficientViT-3D: one convolution with its norm and activation, and its parts.

What decides speed is composed here and in blocks.py: norms folded into convolutions, activations
and residuals fused into the operators. Model files only arrange these layers.

All layers take and give (B, C, T, H, W) tensors and are fastest in `torch.channels_last_3d`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evit_kernels import dense_conv3d, depthwise_conv3d, pointwise_conv3d
from evit_kernels.nn import BatchNormAct3d, DepthwiseConv3d, PointwiseConv3d

TEMPORAL_PADDINGS = ("zeros", "replicate", "causal")
_FEW_CHANNELS = 8  # below this many input channels a dense convolution is ours

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class LayerStyle:
    """What all layers of one network share.

    Args:
        activation: name of the activation, one that the operators of `evit_kernels` can fuse.
        norm_eps: added to the variance in every batch norm.
        temporal_kernel: temporal size of dense and depthwise kernels, odd; 1 works frame by frame.
        aggregation_temporal_kernel: temporal size of the attention's aggregating kernels, odd.
        temporal_padding: "zeros", "replicate" (first and last frame) or "causal" (first frame).
        head_dim: channels of one attention head's query, key and value.
        scales: spatial sizes of the attention's aggregating kernels.
        backend: backend of every operator, None for the automatic choice.
    """

    activation: str
    norm_eps: float = 1e-5
    temporal_kernel: int = 3
    aggregation_temporal_kernel: int = 5
    temporal_padding: str = "replicate"
    head_dim: int = 16
    scales: tuple[int, ...] = (5,)
    backend: str | None = None


class ConvNormAct(nn.Module):
    """A convolution, then a batch norm or none, then an activation or none.

    The convolution has a bias exactly where there is no norm. When the norm uses its running
    statistics, it is folded into the convolution's weight and bias, anew in every call, so that one
    operator does all three steps and parameters stay what they are.
    """

    def __init__(
        self, conv: nn.Conv3d, channels: int, style: LayerStyle, norm: bool, activation: bool
    ) -> None:
        super().__init__()
        self.conv = conv
        self.activation = style.activation if activation else None
        self.norm = (
            BatchNormAct3d(
                channels, style.norm_eps, activation=self.activation, backend=style.backend
            )
            if norm
            else None
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns activation(norm(conv(x))), plus `residual` where one is given."""
        if self.folds():
            return self.fused(x, *self.folded(), residual)
        assert self.norm is not None
        x = self.norm(self.conv(x))
        if not isinstance(self.norm, BatchNormAct3d):
            # Tools such as SyncBatchNorm.convert put a norm here that knows no activation.
            x = activate(x, self.activation)
        return x if residual is None else x + residual

    def folds(self) -> bool:
        """Tells whether this is one convolution with an activation now."""
        return self.norm is None or can_fold(self.norm)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Returns the weight and the bias of that convolution."""
        if self.norm is None:
            return self.conv.weight, self.conv.bias
        return fold_norm(self.conv.weight, self.conv.bias, self.norm)

    def fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        """Returns activation(conv(x) with these parameters), plus `residual` where one is given."""
        raise NotImplementedError


class PointwiseConvNormAct(ConvNormAct):
    """ConvNormAct over a 1x1x1 convolution."""

    conv: PointwiseConv3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: LayerStyle,
        *,
        norm: bool = True,
        activation: bool = True,
    ) -> None:
        conv = PointwiseConv3d(in_channels, out_channels, bias=not norm, backend=style.backend)
        super().__init__(conv, out_channels, style, norm, activation)

    def fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        return pointwise_conv3d(
            x,
            weight,
            bias,
            activation=self.activation,
            residual=residual,
            backend=self.conv.backend,
        )


class DepthwiseConvNormAct(ConvNormAct):
    """ConvNormAct over a depthwise convolution, padded so that stride 1 keeps the size."""

    conv: DepthwiseConv3d

    def __init__(
        self,
        channels: int,
        style: LayerStyle,
        *,
        stride: Triple = (1, 1, 1),
        norm: bool = True,
        activation: bool = True,
    ) -> None:
        kernel = (style.temporal_kernel, 3, 3)
        conv = DepthwiseConv3d(
            channels,
            kernel,
            stride,
            same_padding(kernel),
            bias=not norm,
            temporal_padding=style.temporal_padding,
            backend=style.backend,
        )
        super().__init__(conv, channels, style, norm, activation)

    def fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        conv = self.conv
        x = depthwise_conv3d(
            x,
            weight,
            bias,
            conv.stride,
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,
            temporal_padding=conv.temporal_padding,
            activation=self.activation,
            backend=conv.backend,
        )
        return x if residual is None else x + residual


class DenseConvNormAct(ConvNormAct):
    """ConvNormAct over a dense convolution, padded so that stride 1 keeps the size."""

    conv: DenseConv3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: LayerStyle,
        *,
        stride: Triple = (1, 1, 1),
        norm: bool = True,
        activation: bool = True,
    ) -> None:
        conv = DenseConv3d(
            in_channels,
            out_channels,
            (style.temporal_kernel, 3, 3),
            stride,
            bias=not norm,
            temporal_padding=style.temporal_padding,
            backend=style.backend,
        )
        super().__init__(conv, out_channels, style, norm, activation)

    def fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        x = self.conv.convolve(x, weight, bias, self.activation)
        return x if residual is None else x + residual


class DenseConv3d(nn.Conv3d):
    """`nn.Conv3d` with "same" padding whose time axis is padded by zeros or by repeated frames.

    Odd kernels only. "replicate" repeats the first and the last frame; "causal" repeats the first
    frame k_t - 1 times and nothing after, so that no output frame sees a later input frame. The
    output is in `torch.channels_last_3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = (1, 1, 1),
        *,
        bias: bool = True,
        temporal_padding: str = "zeros",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, same_padding(kernel_size), bias=bias
        )
        self.temporal_padding = temporal_padding
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Convolves (B, C_in, T, H, W)."""
        return self.convolve(input, self.weight, self.bias)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None
    ) -> Tensor:
        """Returns the convolution of (B, C_in, T, H, W) with a weight and bias, activated."""
        padding = same_padding(self.kernel_size)
        if self.in_channels < _FEW_CHANNELS:
            out = dense_conv3d(
                x,
                weight,
                bias,
                self.stride,
                padding,
                temporal_padding=self.temporal_padding,
                activation=activation,
                backend=self.backend,
            )
        else:
            x = pad_frames(x, self.kernel_size[0], self.temporal_padding)
            out = F.conv3d(x, weight, bias, self.stride, (0, *padding[1:]))
            out = activate(out, activation)
        # On CPUs PyTorch's dense convolution may answer in the other format.
        return out.contiguous(memory_format=torch.channels_last_3d)

    def extra_repr(self) -> str:
        """Adds our argument to PyTorch's."""
        return f"{super().extra_repr()}, temporal_padding={self.temporal_padding!r}"  # type: ignore[no-untyped-call]


class GroupedPointwiseConv3d(nn.Module):
    """A 1x1x1 convolution in groups of equal width, without a bias."""

    def __init__(self, channels: int, group_width: int, backend: str | None = None) -> None:
        super().__init__()
        self.groups = channels // group_width
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(channels, group_width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        return pointwise_conv3d(x, self.weight, groups=self.groups, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, groups={self.groups}"


class Aggregation(nn.Module):
    """One extra scale of LiteMLA: queries, keys and values of a token's neighbourhood."""

    def __init__(self, channels: int, scale: int, style: LayerStyle) -> None:
        super().__init__()
        kernel = (style.aggregation_temporal_kernel, scale, scale)
        self.depthwise = DepthwiseConv3d(
            channels,
            kernel,
            1,
            same_padding(kernel),
            bias=False,
            temporal_padding=style.temporal_padding,
            backend=style.backend,
        )
        self.pointwise = GroupedPointwiseConv3d(channels, style.head_dim, style.backend)

    def forward(self, qkv: Tensor) -> Tensor:
        gathered: Tensor = self.pointwise(self.depthwise(qkv))
        return gathered


def same_padding(kernel: Sequence[int]) -> Triple:
    """Returns the padding with which an odd kernel at stride 1 keeps the size."""
    return kernel[0] // 2, kernel[1] // 2, kernel[2] // 2


def frames_around(kernel: int, temporal_padding: str) -> tuple[int, int]:
    """Returns how many frames a temporal kernel needs before and after a clip."""
    return (kernel - 1, 0) if temporal_padding == "causal" else (kernel // 2, kernel // 2)


def pad_frames(x: Tensor, kernel: int, temporal_padding: str) -> Tensor:
    """Returns a clip (B, C, T, H, W) with the frames around it that a temporal kernel needs."""
    if kernel == 1:
        return x
    before, after = frames_around(kernel, temporal_padding)
    first, last = x[:, :, :1], x[:, :, -1:]
    if temporal_padding == "zeros":
        first, last = torch.zeros_like(first), torch.zeros_like(last)
    # torch.cat keeps the memory format; replicate padding of older torch versions does not.
    return torch.cat([first] * before + [x] + [last] * after, dim=2)


def can_fold(norm: nn.Module) -> bool:
    """Tells whether a norm is a fixed scale and shift now, that is, uses its running statistics."""
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def fold_norm(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns the weight and bias of the one convolution that equals convolution, then norm.

    Differentiable in the weight, the bias and the norm's parameters; computed in float32 for half
    precision parameters.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # can_fold
    assert variance is not None
    scale = torch.rsqrt(variance.to(_at_least_float32(variance)) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return (weight * scale.view(-1, 1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Applies an activation by its name."""
    return x if activation is None else _ACTIVATIONS[activation](x)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def init_tensor(name: str, tensor: Tensor, *, identity: bool = False) -> None:
    """Gives a parameter or buffer its first value, by its name and rank."""
    if tensor.dim() > 1:
        nn.init.trunc_normal_(tensor, std=0.02)
    elif name.endswith(("norm.weight", "running_var")) and not identity:
        nn.init.ones_(tensor)
    else:
        nn.init.zeros_(tensor)
