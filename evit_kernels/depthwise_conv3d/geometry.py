"""Strides, paddings and sizes of a depthwise convolution: checked once, shared by every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evit_kernels import _checks

NAME = "depthwise_conv3d"
TEMPORAL_PADDINGS: tuple[str, ...] = ("zeros", "replicate", "causal")
MAX_KERNEL = 7

Triple = tuple[int, int, int]


class Geometry(NamedTuple):
    """The window of a 3-D convolution over (time, height, width)."""

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    temporal_padding: str

    @property
    def clamps_time(self) -> bool:
        """Whether frames outside the clip are the nearest frame inside, instead of zeros."""
        return self.temporal_padding != "zeros"

    @property
    def time_padding(self) -> tuple[int, int]:
        """Frames added before and after the clip."""
        if self.temporal_padding == "causal":
            return (self.kernel[0] - 1) * self.dilation[0], 0
        return self.padding[0], self.padding[0]

    def output_size(self, size: Sequence[int]) -> Triple:
        """Returns the output's (T, H, W) for an input's (T, H, W)."""
        before, after = self.time_padding
        pads = (before + after, 2 * self.padding[1], 2 * self.padding[2])
        t, h, w = (
            (size[i] + pads[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(3)
        )
        return t, h, w


def from_window(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    temporal_padding: str,
) -> Geometry:
    """Returns the geometry of a registered operator's arguments, which were checked before."""
    return Geometry(
        (weight.shape[2], weight.shape[3], weight.shape[4]),
        (stride[0], stride[1], stride[2]),
        (padding[0], padding[1], padding[2]),
        (dilation[0], dilation[1], dilation[2]),
        temporal_padding,
    )


def with_frames(x: Tensor, geometry: Geometry) -> tuple[Tensor, Triple]:
    """Returns a clip with the frames that are repeated around it, and the padding still to do."""
    if not geometry.clamps_time:
        return x, geometry.padding
    before, after = geometry.time_padding
    if before or after:
        first = x[:, :, :1].expand(-1, -1, before, -1, -1)
        last = x[:, :, -1:].expand(-1, -1, after, -1, -1)
        x = torch.cat([first, x, last], dim=2)
    return x, (0, geometry.padding[1], geometry.padding[2])


def make(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    temporal_padding: str,
    where: str = NAME,
) -> Geometry:
    """Checks the arguments of a call, as the public docstring says, and returns its geometry.

    where: the operator that errors name.
    """
    _checks.tensor(input, where, "input")
    _checks.tensor(weight, where, "weight")
    _checks.rank(input, 5, where, "input", "(B, C, T, H, W)")
    _checks.rank(weight, 5, where, "weight", "(C, 1, k_t, k_h, k_w)")
    _checks.floating(input, where, "input")
    _checks.same_kind(weight, input, where, "weight", "input")
    channels = input.shape[1]
    if weight.shape[0] != channels:
        raise ValueError(f"{where}: weight has {weight.shape[0]} channels, input has {channels}")
    if weight.shape[1] != 1:
        raise ValueError(
            f"{where}: weight must have one input channel per group, (C, 1, k_t, k_h, k_w), "
            f"got {tuple(weight.shape)}"
        )
    _check_bias(bias, input, where)
    _checks.non_empty_space(input, where, "input")
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    if min(kernel) < 1 or max(kernel) > MAX_KERNEL:
        raise ValueError(
            f"{where}: weight's kernel must be 1 to {MAX_KERNEL} in every axis, got {kernel}"
        )
    return window(where, input, weight, stride, padding, dilation, temporal_padding)


def window(
    where: str,
    input: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    temporal_padding: str,
) -> Geometry:
    """Returns the window of a convolution by operator `where`, checked against the input."""
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    if temporal_padding not in TEMPORAL_PADDINGS:
        known = ", ".join(map(repr, TEMPORAL_PADDINGS))
        raise ValueError(
            f"{where}: temporal_padding must be one of {known}, got {temporal_padding!r}"
        )
    geometry = Geometry(
        kernel,
        _checks.triple(stride, where, "stride", 1),
        _checks.triple(padding, where, "padding", 0),
        _checks.triple(dilation, where, "dilation", 1),
        temporal_padding,
    )
    output = geometry.output_size(input.shape[2:])
    if min(output) < 1:
        before, after = geometry.time_padding
        t, h, w = input.shape[2:]
        padded = (t + before + after, h + 2 * geometry.padding[1], w + 2 * geometry.padding[2])
        raise ValueError(
            f"{where}: weight's kernel {kernel} with dilation {geometry.dilation} "
            f"is larger than the padded input {padded}"
        )
    return geometry


def _check_bias(bias: Tensor | None, input: Tensor, where: str) -> None:
    if bias is None:
        return
    _checks.tensor(bias, where, "bias")
    _checks.rank(bias, 1, where, "bias", "(C,)")
    if bias.shape[0] != input.shape[1]:
        raise ValueError(f"{where}: bias has {bias.shape[0]} channels, input has {input.shape[1]}")
    _checks.same_kind(bias, input, where, "bias", "input")
