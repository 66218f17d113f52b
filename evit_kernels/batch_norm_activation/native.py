"""batch_norm_activation on the compiled core, which reads both memory formats where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._activations import CODES
from evit_kernels._memory import empty, is_memory, new, new_dense
from evit_kernels._native import DTYPES, core

# Channels-last views that are not dense are read in place if their rows are whole vectors anywhere.
_WIDEST_VECTOR = 16


_Gradients = tuple[Tensor, Tensor, Tensor]


class Direct(NamedTuple):
    """What computes `statistics`, and `forward` without its options, past the dispatcher."""

    statistics: Callable[[Tensor], tuple[Tensor, Tensor]]
    forward: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and biased variance of every channel; of no values, zeros."""
    mean = input.new_empty(input.shape[1], dtype=accumulation(input.dtype))
    variance = torch.empty_like(mean)
    if input.numel() == 0:
        return mean.zero_(), variance.zero_()
    x = _readable(input)
    core().batch_norm_statistics(
        _problem(x, input), x.data_ptr(), mean.data_ptr(), variance.data_ptr()
    )
    return mean, variance


def forward(
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    """Returns the normalised, scaled, shifted and activated `input`, in its memory format."""
    output = empty(input.shape, input, _layout.format_of(input), kept=True)
    if output.numel():
        x = _readable(input)
        # Held by name: the core gets addresses, which do not keep a converted copy alive.
        channels = [_channels(value, x.dtype) for value in (mean, variance, weight, bias)]
        core().batch_norm_activation_forward(
            _problem(x, input, activation, eps),
            x.data_ptr(),
            *map(_pointer, channels),
            output.data_ptr(),
        )
    return output


def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch_moments: bool,
    eps: float,
    activation: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; those not needed are empty.

    With `batch_moments`, mean and variance are those of `input` and pass gradients on to it.
    """
    if input.numel() == 0 or not any(needed):
        return (
            _layout.empty_like_format(input) if needed[0] else input.new_empty(0),
            empty_parameter(weight, input, needed[1]).zero_(),
            empty_parameter(bias, input, needed[2]).zero_(),
        )
    x = _readable(input)
    grad = grad_output.contiguous(memory_format=_layout.format_of(input))
    channels = [_channels(value, x.dtype) for value in (mean, variance, weight, bias)]
    call = _derivative(x, input, eps, activation, batch_moments, needed)
    grad_input, *sums = call(grad, x, *channels)
    # Sums are of the accumulation type, gradients of the parameter's.
    grad_weight, grad_bias = (
        total.to((input if parameter is None else parameter).dtype) if want else total
        for total, parameter, want in zip(sums, (weight, bias), needed[1:], strict=True)
    )
    return grad_input, grad_weight, grad_bias


def direct(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: str,
) -> Direct | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    if not _in_rows(input) or not _summed(input, weight, bias, running_mean, running_var):
        return None
    moments, problem = _problem(input, input), _problem(input, input, activation, eps)
    new_moment = new_dense(input.shape[1], accumulation(input.dtype))
    new_output = new(input.shape, input.dtype, kept=True)
    run_statistics, run_forward = core().batch_norm_statistics, core().batch_norm_activation_forward

    def call_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = new_moment(), new_moment()
        run_statistics(moments, input.data_ptr(), mean.data_ptr(), variance.data_ptr())
        return mean, variance

    def call_forward(
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        output = new_output()
        channels = (mean, variance, weight, bias)
        run_forward(problem, input.data_ptr(), *map(_pointer, channels), output.data_ptr())
        return output

    return Direct(call_statistics, call_forward)


def direct_backward(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    batch_moments: bool,
    eps: float,
    activation: str,
    needed: Sequence[bool],
) -> Callable[..., _Gradients] | None:
    """Returns what computes such gradients past the dispatcher, None if they need copies.

    tensors: grad_output, input, mean, variance, weight and bias.
    """
    grad_output, input, *channels = tensors
    if not _in_rows(input) or not _summed(input, *channels) or not _layout.is_rows(grad_output):
        return None
    return _derivative(input, input, eps, activation, batch_moments, needed)


def _derivative(
    x: Tensor,
    input: Tensor,
    eps: float,
    activation: str,
    batch_moments: bool,
    needed: Sequence[bool],
) -> Callable[..., _Gradients]:
    """Returns what computes gradients from memory as the core reads it: `x` is `input` there."""
    problem = _problem(x, input, activation, eps, batch_moments)
    nothing = new_dense(0, input.dtype)
    new_channel = new_dense(input.shape[1], accumulation(input.dtype))
    new_input = new(input.shape, input.dtype, _layout.format_of(input)) if needed[0] else nothing
    new_weight, new_bias = (new_channel if want else nothing for want in needed[1:])
    run = core().batch_norm_activation_backward

    def call(grad_output: Tensor, input: Tensor, *channels: Tensor | None) -> _Gradients:
        gradients = (new_input(), new_weight(), new_bias())
        run(
            problem,
            grad_output.data_ptr(),
            input.data_ptr(),
            *map(_pointer, channels),
            # Where nothing is needed, nothing was allocated: its address is zero.
            *map(_pointer, gradients),
        )
        return gradients

    return call


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the core keeps sums over tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_parameter(parameter: Tensor | None, input: Tensor, needed: bool) -> Tensor:
    """Returns the uninitialised gradient of a parameter, empty where it is not needed."""
    if not needed:
        return input.new_empty(0)
    like = input if parameter is None else parameter
    return like.new_empty(input.shape[1])


def _problem(
    x: Tensor,
    input: Tensor,
    activation: str = "none",
    eps: float = 0.0,
    batch_moments: bool = False,
) -> bytes:
    problem: bytes = core().batch_norm_activation_problem(
        DTYPES[x.dtype],
        CODES[activation],
        torch.get_num_threads(),
        not _layout.is_channels_last(input),
        batch_moments,
        x.shape[0],
        x.shape[1],
        tuple(x.shape[2:]),
        (x.stride(0), x.stride(2), x.stride(3), x.stride(4)),
        eps,
    )
    return problem


def _readable(input: Tensor) -> Tensor:
    """Returns `input`, or a dense copy in its format where the core cannot read it in place."""
    if not _layout.is_channels_last(input):
        return input.contiguous()
    if input.stride(1) == 1 and input.shape[1] % _WIDEST_VECTOR == 0:
        return input
    return input.contiguous(memory_format=torch.channels_last_3d)


def _in_rows(input: Tensor) -> bool:
    """Whether the core reads `input` in place, channels next to each other."""
    return is_memory(input) and _layout.is_channels_last(input) and _readable(input) is input


def _summed(input: Tensor, *channels: Tensor | None) -> bool:
    """Whether vectors of channels are dense, in the dtype of sums over `input`."""
    dtype = accumulation(input.dtype)
    return is_memory(*channels, dense=True) and all(
        value is None or value.dtype == dtype for value in channels
    )


def _channels(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(accumulation(dtype)).contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
