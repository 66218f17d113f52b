"""The blocks of EfficientViT-3D: what its stages repeat, and the head that follows them.

All blocks take and give (B, C, T, H, W) tensors and are fastest in `torch.channels_last_3d`.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from evit_kernels import pointwise_depthwise_conv3d, relu_linear_attention_qkv
from evit_kernels.nn import PointwiseConv3d
from evit_models.layers import (
    Aggregation,
    ConvNormAct,
    DenseConvNormAct,
    DepthwiseConvNormAct,
    LayerStyle,
    PointwiseConvNormAct,
    Triple,
    activate,
)

ATTENTION_EPS = 1e-15  # of the original project; timm trains and runs with 1e-5


class Block(nn.Module):
    """A branch of layers that may be added to its own input, with stochastic depth.

    Subclasses define `branch`, whose last layer adds the residual, so that operators can fuse it.
    """

    last_layer = "project"

    def __init__(self, residual: bool, drop_path: float) -> None:
        super().__init__()
        self.residual = residual
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        if not self.residual:
            return self.branch(x, None)
        if self.training and self.drop_path > 0.0:
            return x + drop_path(self.branch(x, None), self.drop_path)
        return self.branch(x, x)

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Returns the branch's value, plus `residual` where one is given."""
        raise NotImplementedError


class DSConv(Block):
    """Depthwise separable convolution: depthwise, activation, pointwise."""

    def __init__(
        self, channels: int, style: LayerStyle, *, residual: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__(residual, drop_path)
        self.depthwise = DepthwiseConvNormAct(channels, style)
        self.project = PointwiseConvNormAct(channels, channels, style, activation=False)

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return convolve_between(None, self.depthwise, self.project, x, residual)


class MBConv(Block):
    """Inverted bottleneck: pointwise to `expand_ratio` times the channels, depthwise, pointwise.

    With `fewer_norm` only the last convolution has a norm, the others have a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: LayerStyle,
        *,
        expand_ratio: float,
        stride: Triple = (1, 1, 1),
        fewer_norm: bool = False,
        residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(residual, drop_path)
        middle = round(in_channels * expand_ratio)
        norm = not fewer_norm
        self.expand = PointwiseConvNormAct(in_channels, middle, style, norm=norm)
        self.depthwise = DepthwiseConvNormAct(middle, style, stride=stride, norm=norm)
        self.project = PointwiseConvNormAct(middle, out_channels, style, activation=False)

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return convolve_between(self.expand, self.depthwise, self.project, x, residual)


class FusedMBConv(Block):
    """Inverted bottleneck with one dense convolution in place of pointwise and depthwise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: LayerStyle,
        *,
        expand_ratio: float,
        stride: Triple = (1, 1, 1),
        residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(residual, drop_path)
        middle = round(in_channels * expand_ratio)
        self.dense = DenseConvNormAct(in_channels, middle, style, stride=stride)
        self.project = PointwiseConvNormAct(middle, out_channels, style, activation=False)

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out: Tensor = self.project(self.dense(x), residual)
        return out


class ResBlock(Block):
    """Two dense convolutions of equal width."""

    last_layer = "conv2"

    def __init__(
        self, channels: int, style: LayerStyle, *, residual: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__(residual, drop_path)
        self.conv1 = DenseConvNormAct(channels, channels, style)
        self.conv2 = DenseConvNormAct(channels, channels, style, activation=False)

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x), residual)
        return out


class LiteMLA(Block):
    """Multi-scale ReLU linear attention over all tokens of a clip (arXiv 2205.14756, equation 3).

    The heads of the plain projection come first, then those of every extra scale.
    """

    def __init__(
        self, channels: int, style: LayerStyle, *, residual: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__(residual, drop_path)
        self.head_dim = style.head_dim
        self.eps = ATTENTION_EPS
        self.backend = style.backend
        width = channels // style.head_dim * style.head_dim
        self.qkv = PointwiseConv3d(channels, 3 * width, bias=False, backend=style.backend)
        self.aggregate = nn.ModuleList(
            Aggregation(3 * width, scale, style) for scale in style.scales
        )
        self.project = PointwiseConvNormAct(
            width * (1 + len(style.scales)), channels, style, activation=False
        )

    def branch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        qkv = self.qkv(x)
        scales = [qkv, *(aggregate(qkv) for aggregate in self.aggregate)]
        attended = relu_linear_attention_qkv(
            scales, self.head_dim, eps=self.eps, backend=self.backend
        )
        out: Tensor = self.project(attended, residual)
        return out

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, eps={self.eps}"


class EfficientViTBlock(nn.Module):
    """Global context by LiteMLA, then local detail by an MBConv, both residual.

    There are no positions and no norms before the branches.
    """

    def __init__(
        self, channels: int, style: LayerStyle, *, expand_ratio: float, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = LiteMLA(channels, style, residual=True, drop_path=drop_path)
        self.mbconv = MBConv(
            channels,
            channels,
            style,
            expand_ratio=expand_ratio,
            fewer_norm=True,
            residual=True,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mbconv(self.attention(x))
        return out


class ClassifierHead(nn.Module):
    """Pointwise widening, mean over time and space, two linear layers with a norm between them.

    The mean makes every clip length and resolution fit. With `num_classes=0` the head gives the
    features before the classifier.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int],
        num_classes: int,
        style: LayerStyle,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = style.activation
        self.expand = PointwiseConvNormAct(channels, widths[0], style)
        self.hidden = nn.Linear(widths[0], widths[1], bias=False)
        self.norm = nn.LayerNorm(widths[1], eps=style.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier_layer(widths[1], num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.expand(x).mean((2, 3, 4))
        x = self.dropout(activate(self.norm(self.hidden(x)), self.activation))
        logits: Tensor = x if pre_logits else self.classifier(x)
        return logits


def classifier_layer(features: int, num_classes: int) -> nn.Module:
    """Returns the last linear layer, or an identity for `num_classes=0`."""
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Sets whole samples to zero with a probability and scales the others so that the mean stays.

    Source: deep networks with stochastic depth, arXiv 1603.09382.
    """
    keep = 1.0 - probability
    mask = x.new_empty((x.shape[0], 1, 1, 1, 1)).bernoulli_(keep)
    return x * (mask / keep)


def convolve_between(
    expand: nn.Module | None,
    depthwise: nn.Module,
    project: nn.Module,
    x: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Returns project(depthwise(expand(x)), residual), storing nothing between where possible.

    Layers are called as modules where their norms use the statistics of the batch, where they have
    another backend than the depthwise convolution, and where somebody replaced them or listens to
    them with hooks.
    """
    middle = _joinable(depthwise, DepthwiseConvNormAct)
    backend = None if middle is None else middle.conv.backend
    first = middle and _joinable(expand, PointwiseConvNormAct, backend)
    last = middle and _joinable(project, PointwiseConvNormAct, backend)
    if last is not None and last.activation is not None:
        last = None  # nothing is added behind an activation
    if expand is not None and first is None:
        x = expand(x)
    if middle is not None and (first is not None or last is not None):
        conv = middle.conv
        weight, bias = (None, None) if first is None else first.folded()
        last_weight, last_bias = (None, None) if last is None else last.folded()
        x = pointwise_depthwise_conv3d(
            x,
            weight,
            bias,
            *middle.folded(),
            conv.stride,
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,
            temporal_padding=conv.temporal_padding,
            pointwise_activation=None if first is None else first.activation,
            activation=middle.activation,
            project_weight=last_weight,
            project_bias=last_bias,
            residual=None if last is None else residual,
            backend=backend,
        )
    else:
        x = depthwise(x)
    if last is None:
        x = project(x, residual)
    return x


_Layer = TypeVar("_Layer", bound=ConvNormAct)


def _joinable(
    layer: nn.Module | None, kind: type[_Layer], backend: str | None = None
) -> _Layer | None:
    """Returns a layer that is one convolution now, and that nobody listens to; else None."""
    if type(layer) is not kind or not layer.folds() or _is_heard(layer):
        return None
    if kind is PointwiseConvNormAct and layer.conv.backend != backend:
        return None
    return layer


def _is_heard(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
