"""Gradients of convolutions on the compiled core, which takes the same addresses for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._memory import new, new_dense

Gradients = tuple[Tensor, Tensor, Tensor]


def sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the core keeps sums over tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty(input: Tensor, weight: Tensor, needed: Sequence[bool]) -> Gradients:
    """Returns uninitialised gradients of input, weight and bias; those not needed are empty."""
    return (
        _layout.empty_like_format(input) if needed[0] else input.new_empty(0),
        weight.new_empty(weight.shape) if needed[1] else input.new_empty(0),
        weight.new_empty(weight.shape[0]) if needed[2] else input.new_empty(0),
    )


def zeros(input: Tensor, weight: Tensor, needed: Sequence[bool]) -> Gradients:
    """Returns the gradients of a convolution that has no output; those not needed are empty."""
    of_input, of_weight, of_bias = empty(input, weight, needed)
    return of_input.zero_(), of_weight.zero_(), of_bias.zero_()


def convolution(
    kernels: ModuleType,
    name: str,
    problem: bytes,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    activation: str,
    needed: Sequence[bool],
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Gradients]:
    """Returns what computes the gradients of input, weight and bias; those not needed are empty.

    It takes grad_output, input, weight and bias: in CPU memory, parameters dense, the others as
    `problem` tells. Of the tensors given here only sizes and dtypes count.

    Args:
        kernels: the compiled core.
        name: that of the convolution.
        needed: which of the three are computed.
    """
    run: Callable[..., None] = getattr(kernels, f"{name}_backward")
    nothing = new_dense(0, input.dtype)
    new_input = new(input.shape, input.dtype) if needed[0] else nothing
    new_weight = new_dense(weight.shape, weight.dtype) if needed[1] else nothing
    new_bias = new_dense(weight.shape[0], weight.dtype) if needed[2] else nothing
    # Derivative of the activation times the gradient; its input is recomputed, never stored.
    new_scratch = nothing if activation == "none" else new(grad_output.shape, input.dtype)
    partials = needed[1] or needed[2]
    count: int = getattr(kernels, f"{name}_workspace")(problem) if partials else 0
    new_partials = new_dense(count, sums(input.dtype))

    def call(grad_output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
        gradients = (new_input(), new_weight(), new_bias())
        scratch, partials = new_scratch(), new_partials()
        # The address of what is empty is zero.
        written = [x.data_ptr() for x in (scratch, partials, *gradients)]
        run(
            problem,
            grad_output.data_ptr(),
            input.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            *written,
        )
        return gradients

    return call
