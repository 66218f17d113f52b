"""Batch normalisation and activation in one operator that keeps only its input for backward.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core).
"""

from __future__ import annotations

from torch import Tensor

from evit_kernels import _activations, _checks, backends
from evit_kernels.batch_norm_activation import reference

NAME = "batch_norm_activation"


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
    """Normalises every channel over batch and positions, scales and shifts it, applies the activation.

    Equivalent to, with `activation="hardswish"`:

        F.hardswish(F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps))

    Args:
        input: (B, C, T, H, W), float32, float16, bfloat16 or float64, any strides.
        weight, bias: (C,) or None; their dtype is that of `input` or float32.
        running_mean, running_var: (C,), updated in place when training; None to keep none.
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
    _checks.tensor(input, NAME, "input")
    _checks.rank(input, 5, NAME, "input", "(B, C, T, H, W)")
    _checks.floating(input, NAME, "input")
    _checks.non_empty_space(input, NAME, "input")
    channels = input.shape[1]
    named = (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    )
    for name, value in named:
        if value is not None and tuple(_checks.tensor(value, NAME, name).shape) != (channels,):
            raise ValueError(f"{NAME}: {name} must be ({channels},), got {tuple(value.shape)}")
    if not training and (running_mean is None or running_var is None):
        raise ValueError(f"{NAME}: running_mean and running_var are needed when not training")
    if training and input.numel() == channels:
        raise ValueError(
            f"{NAME}: more than one value per channel is needed in training, "
            f"got input {tuple(input.shape)}"
        )
    function = _activations.canonical(activation, NAME)
    backends.select(NAME, backend, input)
    return reference.batch_norm_activation(
        input, weight, bias, running_mean, running_var, training, momentum, eps, function
    )
