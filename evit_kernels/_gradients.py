"""Gradients of convolutions on the compiled core, which takes the same addresses for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evit_kernels._native import new, new_dense

Gradients = tuple[Tensor, Tensor, Tensor]


def sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the core keeps sums over tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def zeros(like: Tensor, shapes: Sequence[Sequence[int]], needed: Sequence[bool]) -> Gradients:
    """Returns the gradients of a convolution of nothing; those not needed are empty."""
    first, second, third = (
        like.new_zeros(shape if want else 0) for shape, want in zip(shapes, needed, strict=True)
    )
    return first, second, third


def convolution(
    run: Callable[..., None],
    workspace: Callable[[bytes], int],
    problem: bytes,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    activated: bool,
    needed: Sequence[bool],
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Gradients]:
    """Returns what computes the gradients of input, weight and bias; those not needed are empty.

    It takes grad_output, input, weight and bias: in CPU memory, parameters dense, the others as
    `problem` tells. Of the tensors given here only sizes and dtypes count.

    Args:
        run, workspace: the core's backward, and how many sums of scratch it wants for parameters.
        activated: whether an activation follows, whose derivative needs scratch.
        needed: which of the three are computed.
    """
    nothing = new_dense(0, input.dtype)

    def parameter(size: Sequence[int], wanted: bool) -> Callable[[], Tensor]:
        return new_dense(size, weight.dtype) if wanted else nothing

    new_input = new(input.shape, input.dtype) if needed[0] else nothing
    new_weight = parameter(weight.shape, needed[1])
    new_bias = parameter(weight.shape[:1], needed[2])
    # Derivative of the activation times the gradient; its input is recomputed, never stored.
    new_scratch = new(grad_output.shape, input.dtype) if activated else None
    count = workspace(problem) if needed[1] or needed[2] else 0
    new_partials = new_dense(count, sums(input.dtype))

    def call(grad_output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
        gradients = (new_input(), new_weight(), new_bias())
        scratch, partials = new_scratch and new_scratch(), new_partials()
        run(
            problem,
            grad_output.data_ptr(),
            input.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if scratch is None else scratch.data_ptr(),
            partials.data_ptr(),
            # Where nothing is needed, nothing was allocated: its address is zero.
            *(x.data_ptr() for x in gradients),
        )
        return gradients

    return call
