"""Calls of every operator, to be tried on every device that has kernels for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from placement import Placement, placements, randn
from torch import Tensor

from evit_kernels import (
    backends,
    batch_norm_activation,
    dense_conv3d,
    depthwise_conv3d,
    pointwise_conv3d,
    pointwise_depthwise_conv3d,
    relu_linear_attention,
    relu_linear_attention_qkv,
)

LAST = torch.channels_last_3d
Shape = tuple[int, ...]


class Call(NamedTuple):
    """A call of an operator: the shapes of its tensors, and what is done with them."""

    name: str
    operator: str
    shapes: tuple[Shape, ...]
    function: Callable[..., Tensor]  # (*tensors, backend=...)

    def __str__(self) -> str:
        return self.name

    def leaves(
        self, device: str, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> list[Tensor]:
        """Its tensors, clips in channels-last; the numbers are the same on every device."""
        tensors = []
        for number, shape in enumerate(self.shapes):
            numbers = randn(*shape, seed=seed + number)
            if len(shape) == 5 and number:  # a weight: outputs of order one
                numbers /= numbers[0].numel() ** 0.5
            x = numbers.to(device, dtype)
            tensors.append(x.contiguous(memory_format=LAST) if x.dim() == 5 and not number else x)
        return [x.requires_grad_() for x in tensors]

    def results(self, leaves: list[Tensor], backend: str | None, seed: int = 9) -> list[Tensor]:
        """The output, then the gradients of all tensors."""
        output = self.function(*leaves, backend=backend)
        noise = randn(*output.shape, seed=seed).to(output)
        return [output.detach(), *torch.autograd.grad(output, leaves, noise)]


def _depthwise(**window: object) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None) -> Tensor:
        return depthwise_conv3d(x, weight, bias, backend=backend, **window)  # type: ignore[arg-type]

    return call


def _attention(x: Tensor, y: Tensor, backend: str | None) -> Tensor:
    return relu_linear_attention_qkv([x, y], 16, backend=backend)


def _separate(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
    return relu_linear_attention(q, k, v, backend=backend)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None) -> Tensor:
    return pointwise_conv3d(x, weight, bias, activation="hardswish", backend=backend)


def _pointwise_depthwise(
    x: Tensor, first: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, backend: str | None
) -> Tensor:
    return pointwise_depthwise_conv3d(
        x, first, shift, weight, bias, padding=1, pointwise_activation="silu", backend=backend
    )


def _dense(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None) -> Tensor:
    return dense_conv3d(x, weight, bias, (1, 2, 2), 1, activation="hardswish", backend=backend)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None) -> Tensor:
    return batch_norm_activation(
        x, weight, bias, None, None, training=True, activation="hardswish", backend=backend
    )


CALLS = [
    Call(
        "depthwise-k3",
        "depthwise_conv3d",
        ((2, 24, 4, 13, 14), (24, 1, 3, 3, 3), (24,)),
        _depthwise(padding=1, activation="hardswish"),
    ),
    Call(
        "depthwise-k5-strided",
        "depthwise_conv3d",
        ((2, 40, 5, 14, 15), (40, 1, 5, 5, 5), (40,)),
        _depthwise(stride=(1, 2, 2), padding=2, temporal_padding="replicate", activation="gelu"),
    ),
    Call(
        "attention-packed",
        "relu_linear_attention",
        ((2, 96, 4, 9, 10), (2, 48, 4, 9, 10)),
        _attention,
    ),
    Call("attention-separate", "relu_linear_attention", ((2, 3, 301, 32),) * 3, _separate),
    Call("pointwise", "pointwise_conv3d", ((2, 24, 3, 7, 8), (40, 24, 1, 1, 1), (40,)), _pointwise),
    Call(
        "pointwise-depthwise",
        "pointwise_depthwise_conv3d",
        ((2, 24, 3, 7, 8), (40, 24, 1, 1, 1), (40,), (40, 1, 3, 3, 3), (40,)),
        _pointwise_depthwise,
    ),
    Call("dense", "dense_conv3d", ((2, 3, 4, 16, 18), (16, 3, 3, 3, 3), (16,)), _dense),
    Call("batch-norm", "batch_norm_activation", ((3, 24, 3, 7, 8), (24,), (24,)), _norm),
]
# Those that have kernels of their own on GPUs.
FUSED = [call for call in CALLS if call.operator in backends.CUDA_OPERATORS]


def fused_calls() -> list[tuple[Call, Placement]]:
    """Every such call on the CPU, where the tests themselves are tried, and on what GPUs have."""
    return [
        (call, place)
        for call in FUSED
        for place in [Placement("cpu", "native"), *placements(call.operator)]
    ]
