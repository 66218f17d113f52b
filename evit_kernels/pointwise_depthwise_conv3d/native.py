"""pointwise_depthwise_conv3d on the compiled core: rows of the depthwise input made as needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._activations import CODES
from evit_kernels._native import DTYPES, core, empty, is_memory, new
from evit_kernels.depthwise_conv3d import native as depthwise
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.pointwise_conv3d import native as pointwise

Activations = tuple[str, str]


def serves(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Tells whether the core has kernels for such a call on this CPU; strides do not matter."""
    size = (1, weight.shape[0], *input.shape[2:])
    strides = torch.empty(size, device="meta", memory_format=torch.channels_last_3d).stride()
    _, problem = _plan(
        DTYPES[input.dtype], torch.Size(size), strides, 1, geometry, ("none", "none"), 1
    )
    answer: bool = core().pointwise_depthwise_conv3d_serves(problem)
    return answer


def forward(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activations: Activations,
) -> Tensor:
    """Returns both convolutions of `input`, in its memory format."""
    if not serves(input, weight, geometry):
        middle = pointwise.forward(input, pointwise_weight, pointwise_bias, activations[0], None)
        return depthwise.forward(middle, weight, bias, geometry, activations[1])
    x = _layout.channels_last(input)
    # Held by name: the core gets addresses, which do not keep a copy alive.
    parameters = [
        None if t is None else t.contiguous()
        for t in (pointwise_weight, pointwise_bias, weight, bias)
    ]
    size, problem = _planned(x, weight, geometry, activations)
    output = empty(size, x)
    if output.numel():
        core().pointwise_depthwise_conv3d_forward(
            problem,
            x.data_ptr(),
            *(0 if t is None else t.data_ptr() for t in parameters),
            output.data_ptr(),
        )
    return _layout.in_format_of(output, input)


def direct(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activations: Activations,
) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    if input.stride(1) != 1 or not _layout.is_channels_last(input):
        return None
    if not is_memory(input) or not is_memory(
        pointwise_weight, pointwise_bias, weight, bias, dense=True
    ):
        return None
    size, problem = _planned(input, weight, geometry, activations)
    new_output = new(size, input.dtype)
    run = core().pointwise_depthwise_conv3d_forward

    def call(
        input: Tensor,
        pointwise_weight: Tensor,
        pointwise_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        output = new_output()
        run(
            problem,
            input.data_ptr(),
            pointwise_weight.data_ptr(),
            0 if pointwise_bias is None else pointwise_bias.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            output.data_ptr(),
        )
        return output

    return call


def _planned(
    x: Tensor, weight: Tensor, geometry: Geometry, activations: Activations
) -> tuple[tuple[int, ...], bytes]:
    size = torch.Size((x.shape[0], weight.shape[0], *x.shape[2:]))
    threads = torch.get_num_threads()
    return _plan(DTYPES[x.dtype], size, x.stride(), x.shape[1], geometry, activations, threads)


@lru_cache(maxsize=1024)
def _plan(
    dtype: int,
    middle: torch.Size,
    strides: tuple[int, ...],
    in_channels: int,
    geometry: Geometry,
    activations: Activations,
    threads: int,
) -> tuple[tuple[int, ...], bytes]:
    """Returns the size of the output, and the problem as the core takes it.

    middle: the size of what lies between the convolutions. strides: of the input.
    """
    size, second = depthwise.plan(dtype, middle, strides, False, geometry, activations[1], threads)
    problem = core().pointwise_depthwise_conv3d_problem(second, CODES[activations[0]], in_channels)
    return size, problem
