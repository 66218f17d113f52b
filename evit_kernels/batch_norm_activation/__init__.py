"""Batch normalisation and activation in one operator that keeps only its input for backward.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evit_kernels import _activations, _calls, _checks, backends
from evit_kernels.batch_norm_activation import op, reference
from evit_kernels.batch_norm_activation.op import NAME

_CALLS = _calls.Calls()


def batch_norm_activation(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalises every channel over batch and positions, scales, shifts and activates it.

    Equivalent to, with `activation="hardswish"`:

        y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        F.hardswish(y)

    Args:
        input: (B, C, T, H, W), float32, float16, bfloat16 or float64, any strides.
        weight, bias: (C,) or None; their dtype is that of `input`, or float32 for a float16 or
            bfloat16 input.
        running_mean, running_var: (C,), dtype as for `weight`, updated in place when training, the
            variance by the unbiased one; None to keep none.
        training: whether to normalise by the batch's statistics or by the running ones.
        momentum: weight of the batch's statistics in the running ones.
        eps: added to the variance.
        activation: None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh" or "silu".
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C, T, H, W) in the dtype and memory format of `input`.

    Raises:
        ValueError: wrong rank, sizes or names, or one value per channel in training.
        TypeError: wrong types. RuntimeError: a backend that cannot serve, a second derivative.
    """
    tensors = (input, weight, bias, running_mean, running_var)
    key, known = _CALLS.find(tensors, (training, eps, activation), backend)
    if known is None:
        _check(*tensors, training)
        function = _activations.canonical(activation, NAME)
        chosen = backends.select(NAME, backend, input)
        direct = key and _calls.direct(op.BACKENDS, chosen, *tensors, eps, function)
        known = _CALLS.keep(key, _calls.Known(chosen, function, direct))
    arguments = (*tensors, training, momentum, eps, known.arguments)
    if known.backend == "reference":
        return reference.batch_norm_activation(*arguments)
    return op.batch_norm_activation(*arguments, known.backend, known.direct)


def _check(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> None:
    _checks.tensor(input, NAME, "input")
    _checks.rank(input, 5, NAME, "input", "(B, C, T, H, W)")
    _checks.floating(input, NAME, "input")
    _checks.non_empty_space(input, NAME, "input")
    _check_parameter(weight, input, "weight")
    _check_parameter(bias, input, "bias")
    _check_parameter(running_mean, input, "running_mean")
    _check_parameter(running_var, input, "running_var")
    if not training and (running_mean is None or running_var is None):
        raise ValueError(f"{NAME}: running_mean and running_var are needed when not training")
    if training and input.numel() == input.shape[1]:
        raise ValueError(
            f"{NAME}: more than one value per channel is needed in training, "
            f"got input {tuple(input.shape)}"
        )


def _check_parameter(value: Tensor | None, input: Tensor, name: str) -> None:
    if value is None:
        return
    if tuple(_checks.tensor(value, NAME, name).shape) != (input.shape[1],):
        raise ValueError(f"{NAME}: {name} must be ({input.shape[1]},), got {tuple(value.shape)}")
    if value.device != input.device:
        raise RuntimeError(f"{NAME}: {name} is on {value.device}, input is on {input.device}")
    # As under autocast: parameters stay in float32 where activations are shorter.
    if value.dtype != input.dtype and (
        value.dtype != torch.float32 or input.dtype == torch.float64
    ):
        raise TypeError(f"{NAME}: {name} is {value.dtype}, input is {input.dtype}")
