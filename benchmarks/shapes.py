"""The shapes that operators meet inside a model, read off the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from evit_models import create_model

MODEL = "efficientvit3d_b1"
CLIP = (1, 3, 16, 224, 224)

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class DepthwiseShape:
    """A depthwise convolution: input (B, C, T, H, W), kernel and stride; its padding is k // 2."""

    input: tuple[int, int, int, int, int]
    kernel: Triple
    stride: Triple

    @property
    def padding(self) -> Triple:
        """The padding that keeps the size at stride 1."""
        return self.kernel[0] // 2, self.kernel[1] // 2, self.kernel[2] // 2

    @property
    def output(self) -> tuple[int, ...]:
        """The size of the result."""
        space = zip(self.input[2:], self.kernel, self.stride, self.padding, strict=True)
        return *self.input[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in space)

    def __str__(self) -> str:
        size = "x".join(map(str, self.input[1:]))
        return f"{size}-k{_short(self.kernel)}-s{_short(self.stride)}"


@dataclass(frozen=True)
class BottleneckShape:
    """A depthwise convolution, and the channels of the pointwise ones around it.

    `in_channels` is 0 where there is none before it, `out_channels` where there is none behind it.
    """

    in_channels: int
    depthwise: DepthwiseShape
    out_channels: int = 0
    residual: bool = False

    @property
    def input(self) -> tuple[int, int, int, int, int]:
        """The size of what is read first."""
        batch, channels, *space = self.depthwise.input
        return batch, self.in_channels or channels, space[0], space[1], space[2]

    @property
    def output(self) -> tuple[int, ...]:
        """The size of the result."""
        batch, channels, *space = self.depthwise.output
        return batch, self.out_channels or channels, *space

    @property
    def without_last(self) -> BottleneckShape:
        """The same without the pointwise convolution behind."""
        return BottleneckShape(self.in_channels, self.depthwise)

    def __str__(self) -> str:
        before = f"{self.in_channels}-" if self.in_channels else ""
        behind = f"-{self.out_channels}" if self.out_channels else ""
        return f"{before}{self.depthwise}{behind}{'+residual' if self.residual else ''}"


@dataclass(frozen=True)
class AttentionShape:
    """Attention over packed projections: sizes (B, C, T, H, W) of its sources, width of a head."""

    sources: tuple[tuple[int, ...], ...]
    head_dim: int

    def __str__(self) -> str:
        _, _, *space = self.sources[0]
        channels = "+".join(str(source[1]) for source in self.sources)
        return f"{channels}x{'x'.join(map(str, space))}-d{self.head_dim}"


def depthwise_shapes(model: str = MODEL, clip: tuple[int, ...] = CLIP) -> list[DepthwiseShape]:
    """Every depthwise convolution that a forward pass calls, each shape once, in order.

    Nothing is computed: the model runs on tensors that have shapes but no memory.
    """
    shapes = list(dict.fromkeys(_calls(model, clip).depthwise))
    if not shapes:
        raise RuntimeError(f"{model} called no depthwise convolution of evit_kernels")
    return shapes


def bottleneck_shapes(model: str = MODEL, clip: tuple[int, ...] = CLIP) -> list[BottleneckShape]:
    """Every inverted bottleneck and separable convolution, each shape once, in order."""
    shapes = list(dict.fromkeys(_calls(model, clip).bottlenecks))
    if not shapes:
        raise RuntimeError(f"{model} called no pointwise_depthwise_conv3d of evit_kernels")
    return shapes


def attention_shapes(model: str = MODEL, clip: tuple[int, ...] = CLIP) -> list[AttentionShape]:
    """Every attention that a forward pass calls, each shape once, in order; nothing is computed."""
    shapes = list(dict.fromkeys(_calls(model, clip).attention))
    if not shapes:
        raise RuntimeError(f"{model} called no attention of evit_kernels")
    return shapes


@cache
def _calls(model: str, clip: tuple[int, ...]) -> _OperatorCalls:
    network = create_model(model, backend="native").eval()
    calls = _OperatorCalls()
    with FakeTensorMode(), torch.no_grad():
        state = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in _tensors(network)}
        with calls:
            functional_call(network, state, (torch.empty(clip),))
    return calls


class _OperatorCalls(TorchDispatchMode):
    """Writes down the arguments of depthwise convolutions and attentions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.depthwise: list[DepthwiseShape] = []
        self.bottlenecks: list[BottleneckShape] = []
        self.attention: list[AttentionShape] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.ops.evit.depthwise_conv3d.default:
            input, weight, _, stride, padding = args[:5]
            self._filter(input.shape, weight, stride, padding)
        if func is torch.ops.evit.pointwise_depthwise_conv3d.default:
            input, first, _, weight, _, last, _, residual, stride, padding = args[:10]
            between = (input.shape[0], weight.shape[0], *input.shape[2:])
            self._filter(between, weight, stride, padding)
            self.bottlenecks.append(
                BottleneckShape(
                    0 if first is None else input.shape[1],
                    self.depthwise[-1],
                    0 if last is None else last.shape[0],
                    residual is not None,
                )
            )
        if func is torch.ops.evit.relu_linear_attention_qkv.default:
            sources, head_dim = args[:2]
            self.attention.append(AttentionShape(tuple(tuple(x.shape) for x in sources), head_dim))
        return func(*args, **(kwargs or {}))

    def _filter(self, size: Any, weight: Tensor, stride: Any, padding: Any) -> None:
        shape = DepthwiseShape(tuple(size), tuple(weight.shape[2:]), tuple(stride))  # type: ignore[arg-type]
        if shape.padding != tuple(padding):
            raise RuntimeError(f"{shape} is padded by {tuple(padding)}, not by {shape.padding}")
        self.depthwise.append(shape)


def _tensors(network: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _short(values: Triple) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
