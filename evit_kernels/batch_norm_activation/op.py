"""Registration of batch_norm_activation with torch: schemas, fake implementations, derivative.

Three functional operators: moments of a batch, normalisation with given moments, and the derivative
of both together. The running statistics are updated here, in Python, so that no operator changes
its arguments: autograd, the compiler and export see ordinary updates of two small buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evit_kernels import _calls, _layout, _registration
from evit_kernels.batch_norm_activation import native

NAME = "batch_norm_activation"

_MOMENTS = "Tensor mean, Tensor variance, Tensor? weight, Tensor? bias"

_registration.define("batch_norm_statistics(Tensor input, str backend) -> (Tensor, Tensor)")
_registration.define(
    f"batch_norm_activation(Tensor input, {_MOMENTS}, float eps, str activation, str backend) "
    "-> Tensor"
)
_registration.define(
    f"batch_norm_activation_backward(Tensor grad_output, Tensor input, {_MOMENTS}, "
    "bool batch_moments, float eps, str activation, str backend, bool[3] needed) "
    "-> (Tensor, Tensor, Tensor)"
)

BACKENDS = {"native": native}
_GRADIENTS = _calls.Calls()


def batch_norm_activation(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    backend: str,
    direct: native.Direct | None,
) -> Tensor:
    """Calls the operators, through autograd where a gradient is wanted.

    Those of `direct`, where there are any, instead of the registered ones.
    """
    if training:
        with torch.no_grad():
            mean, variance = direct.statistics(input) if direct else _statistics(input, backend)
            count = input.numel() // input.shape[1]
            if count:  # an empty batch teaches nothing
                _update(running_mean, mean, momentum)
                # The running variance is the unbiased one, as in PyTorch.
                _update(running_var, variance, momentum, count / (count - 1))
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, variance = running_mean, running_var
    tensors = (input, mean, variance, weight, bias)
    if _registration.needs_autograd(input, weight, bias):
        result: Tensor = _BatchNormActivation.apply(
            *_registration.distinct(*tensors), training, eps, activation, backend, direct
        )
        return result
    if direct is not None:
        return direct.forward(*tensors)
    return _forward(*tensors, eps, activation, backend)


def _update(running: Tensor | None, value: Tensor, momentum: float, factor: float = 1.0) -> None:
    if running is None:
        return
    if running.dtype == value.dtype:
        running.mul_(1 - momentum).add_(value, alpha=momentum * factor)
    else:
        # In the precision of `value`, rounded once to that of the buffer.
        kept = running.to(value.dtype) * (1 - momentum)
        running.copy_(kept.add_(value, alpha=momentum * factor))


class _BatchNormActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        eps: float,
        activation: str,
        backend: str,
        direct: native.Direct | None,
    ) -> Tensor:
        # The output before the activation is recomputed from these: one tensor is kept, not three.
        ctx.save_for_backward(input, mean, variance, weight, bias)
        ctx.arguments = (training, eps, activation, backend)
        if direct is not None:
            return direct.forward(input, mean, variance, weight, bias)
        return _forward(input, mean, variance, weight, bias, eps, activation, backend)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        needed = [wanted[0], wanted[3], wanted[4]]
        grads = _registration.call_backward(
            NAME, _differentiate, grad_output, *ctx.saved_tensors, *ctx.arguments, needed
        )
        input, weight, bias = (g if want else None for g, want in zip(grads, needed, strict=True))
        return input, None, None, weight, bias, None, None, None, None, None


def _differentiate(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch_moments: bool,
    eps: float,
    activation: str,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (grad_output, input, mean, variance, weight, bias)
    options = (batch_moments, eps, activation)
    call = _GRADIENTS.direct_backward(BACKENDS, backend, tensors, (*options, tuple(needed)))
    if call is not None:
        return call(*tensors)
    return _backward(*tensors, *options, backend, needed)


def _statistics_impl(input: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].statistics(input)


def _statistics_fake(input: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    dtype = native.accumulation(input.dtype)
    mean = input.new_empty(input.shape[1], dtype=dtype)
    return mean, torch.empty_like(mean)


def _forward_impl(
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    backend: str,
) -> Tensor:
    return BACKENDS[backend].forward(input, mean, variance, weight, bias, eps, activation)


def _forward_fake(input: Tensor, *arguments: Any) -> Tensor:
    return _layout.empty_like_format(input)


def _backward_impl(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch_moments: bool,
    eps: float,
    activation: str,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(
        grad_output, input, mean, variance, weight, bias, batch_moments, eps, activation, needed
    )


def _backward_fake(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    needed = arguments[-1]
    return (
        _layout.empty_like_format(input) if needed[0] else input.new_empty(0),
        native.empty_parameter(weight, input, needed[1]),
        native.empty_parameter(bias, input, needed[2]),
    )


_statistics = _registration.implement("batch_norm_statistics", _statistics_impl, _statistics_fake)
_forward = _registration.implement("batch_norm_activation", _forward_impl, _forward_fake)
_backward = _registration.implement(
    "batch_norm_activation_backward", _backward_impl, _backward_fake
)
