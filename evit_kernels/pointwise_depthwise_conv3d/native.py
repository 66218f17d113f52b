"""pointwise_depthwise_conv3d on the compiled core: what lies between is made row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._activations import CODES
from evit_kernels._memory import empty, is_memory, new
from evit_kernels._native import DTYPES, core
from evit_kernels.depthwise_conv3d import native as depthwise
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.pointwise_conv3d import native as pointwise

Activations = tuple[str, str]


def serves(
    input: Tensor,
    pointwise_weight: Tensor | None,
    weight: Tensor,
    project_weight: Tensor | None,
    geometry: Geometry,
) -> bool:
    """Tells whether the core joins such convolutions on this CPU; strides do not matter."""
    size = (1, weight.shape[0], *input.shape[2:])
    strides = torch.empty(size, device="meta", memory_format=torch.channels_last_3d).stride()
    _, problem = _plan(
        DTYPES[input.dtype],
        torch.Size(size),
        strides,
        (pointwise_weight is not None, project_weight is not None),
        geometry,
        ("none", "none"),
        1,
    )
    answer: bool = core().pointwise_depthwise_conv3d_serves(problem)
    return answer


def forward(
    input: Tensor,
    pointwise_weight: Tensor | None,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    project_weight: Tensor | None,
    project_bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    activations: Activations,
) -> Tensor:
    """Returns the convolutions of `input`, in its memory format."""
    if not serves(input, pointwise_weight, weight, project_weight, geometry):
        if project_weight is not None:
            first = (input, pointwise_weight, pointwise_bias, weight, bias, None, None, None)
            middle = forward(*first, geometry, activations)
            return pointwise.forward(middle, project_weight, project_bias, "none", residual)
        if pointwise_weight is not None:
            input = pointwise.forward(input, pointwise_weight, pointwise_bias, activations[0], None)
        return depthwise.forward(input, weight, bias, geometry, activations[1])
    x = _layout.channels_last(input)
    # Held by name: the core gets addresses, which do not keep a copy alive.
    parameters = [
        None if t is None else t.contiguous()
        for t in (pointwise_weight, pointwise_bias, weight, bias, project_weight, project_bias)
    ]
    if residual is not None:
        residual = _layout.dense_channels_last(residual)
    size, problem = _planned(x, pointwise_weight, weight, project_weight, geometry, activations)
    output = empty(size, x)
    if output.numel():
        call = core().pointwise_depthwise_conv3d_prepared(problem, lambda: output)
        call(x, *parameters, residual)
    return _layout.in_format_of(output, input)


def direct(
    input: Tensor,
    pointwise_weight: Tensor | None,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    project_weight: Tensor | None,
    project_bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    activations: Activations,
) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    parameters = (pointwise_weight, pointwise_bias, weight, bias, project_weight, project_bias)
    if input.stride(1) != 1 or not _layout.is_channels_last(input):
        return None
    if not is_memory(input) or not is_memory(*parameters, dense=True):
        return None
    if residual is not None and not _layout.is_rows(residual):
        return None
    size, problem = _planned(input, pointwise_weight, weight, project_weight, geometry, activations)
    prepared = core().pointwise_depthwise_conv3d_prepared
    call: Callable[..., Tensor] = prepared(problem, new(size, input.dtype))
    return call


def _planned(
    x: Tensor,
    pointwise_weight: Tensor | None,
    weight: Tensor,
    project_weight: Tensor | None,
    geometry: Geometry,
    activations: Activations,
) -> tuple[tuple[int, ...], bytes]:
    size = torch.Size((x.shape[0], weight.shape[0], *x.shape[2:]))
    around = (
        0 if pointwise_weight is None else x.shape[1],
        0 if project_weight is None else project_weight.shape[0],
    )
    threads = torch.get_num_threads()
    return _plan(DTYPES[x.dtype], size, x.stride(), around, geometry, activations, threads)


@lru_cache(maxsize=1024)
def _plan(
    dtype: int,
    middle: torch.Size,
    strides: tuple[int, ...],
    around: tuple[int, int],
    geometry: Geometry,
    activations: Activations,
    threads: int,
) -> tuple[tuple[int, ...], bytes]:
    """Returns the size of the output, and the problem as the core takes it.

    middle: the size of the depthwise convolution's input. strides: of the whole input. around: the
    channels before and behind, 0 where no pointwise convolution is there.
    """
    size, second = depthwise.plan(dtype, middle, strides, False, geometry, activations[1], threads)
    problem = core().pointwise_depthwise_conv3d_problem(second, CODES[activations[0]], *around)
    return (size[0], around[1] or size[1], *size[2:]), problem
