"""A call of every operator that has a short way, and calls that nobody remembers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evit_kernels import (
    _calls,
    batch_norm_activation,
    depthwise_conv3d,
    pointwise_conv3d,
    pointwise_depthwise_conv3d,
    relu_linear_attention_qkv,
)

LAST = torch.channels_last_3d


def rows(*size: int) -> Tensor:
    """Returns a random channels-last tensor."""
    return torch.randn(*size).contiguous(memory_format=LAST)


def forget_every_call(patch: pytest.MonkeyPatch) -> None:
    """Makes every call the first of its kind, as long as `patch` lasts."""
    for way in ("find", "call"):
        patch.setattr(_calls.Calls, way, lambda *_: (None, None))


class Case:
    """An operator, called with its tensors alone, and the name under which torch knows it."""

    def __init__(self, name: str, function: Callable[..., Tensor], *tensors: Tensor) -> None:
        self.name = name
        self.function = function
        self.tensors = tensors

    def __call__(self) -> Tensor:
        return self.function(*self.tensors)


def cases() -> list[Case]:
    """Returns a case of every operator."""
    torch.manual_seed(1)
    x = rows(2, 8, 3, 5, 4)
    return [
        Case(
            "depthwise_conv3d",
            lambda x, w, b: depthwise_conv3d(
                x, w, b, (1, 2, 2), 1, activation="silu", backend="native"
            ),
            x,
            torch.randn(8, 1, 3, 3, 3),
            torch.randn(8),
        ),
        Case(
            "pointwise_conv3d",
            lambda x, w, b, r: pointwise_conv3d(x, w, b, residual=r, backend="native"),
            x,
            torch.randn(6, 8, 1, 1, 1),
            torch.randn(6),
            rows(2, 6, 3, 5, 4),
        ),
        Case(
            "pointwise_depthwise_conv3d",
            lambda x, v, a, w, b, p, r: pointwise_depthwise_conv3d(
                x,
                v,
                a,
                w,
                b,
                (1, 2, 2),
                1,
                activation="silu",
                project_weight=p,
                residual=r,
                backend="native",
            ),
            x,
            torch.randn(6, 8, 1, 1, 1),
            torch.randn(6),
            torch.randn(6, 1, 3, 3, 3),
            torch.randn(6),
            torch.randn(4, 6, 1, 1, 1),
            rows(2, 4, 3, 3, 2),
        ),
        Case(
            "batch_norm_activation",
            lambda x, w, b: batch_norm_activation(
                x, w, b, None, None, training=True, activation="hardswish", backend="native"
            ),
            x,
            torch.rand(8) + 0.5,
            torch.randn(8),
        ),
        Case(
            "relu_linear_attention_qkv",
            lambda *qkv: relu_linear_attention_qkv(qkv, 4, backend="native"),
            rows(2, 24, 3, 5, 4),
            rows(2, 12, 3, 5, 4),
        ),
    ]
