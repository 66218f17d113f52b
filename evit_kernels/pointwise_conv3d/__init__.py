"""Pointwise (1x1x1) convolution with bias, activation and residual.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the fast path on CPUs).
"""

from __future__ import annotations

from torch import Tensor

from evit_kernels import _activations, _autocast, _calls, _checks, backends
from evit_kernels.batch_norm_activation import batch_norm_activation
from evit_kernels.pointwise_conv3d import op, reference

NAME = "pointwise_conv3d"
_CALLS = _calls.Calls()


def pointwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    groups: int = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mixes the channels of every position of a clip, then activates, then adds a residual.

    Equivalent to, with `activation="hardswish"`:

        F.hardswish(F.conv3d(input, weight, bias, groups=groups)) + residual

    Args:
        input: (B, C_in, T, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (C_out, C_in / groups, 1, 1, 1), dtype and device of `input`.
        bias: (C_out,) or None.
        groups: into how many independent groups the channels of input and output are divided.
        activation: None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh" or "silu".
        residual: (B, C_out, T, H, W) or None, added after the activation.
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C_out, T, H, W) in the dtype and memory format of `input`.

    Raises:
        ValueError: wrong rank, sizes or names. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    input, weight, bias, residual = _autocast.to_lower_precision(input, weight, bias, residual)
    tensors = (input, weight, bias, residual)
    found = _CALLS.call(tensors, (groups, activation), backend)
    if isinstance(found, Tensor):
        return found
    key, known = found
    if known is None:
        _check(input, weight, bias, residual, groups)
        function = _activations.canonical(activation, NAME)
        chosen = backends.select(NAME, backend, input)
        fused, after = op.divided(function, chosen, *tensors)
        direct = key and _calls.direct(op.BACKENDS, chosen, *tensors, fused)
        known = _CALLS.learn(key, tensors, chosen, (fused, after), direct)
    fused, after = known.arguments
    if known.backend == "reference":
        return reference.pointwise_conv3d(input, weight, bias, fused, residual)
    output = op.pointwise_conv3d(*tensors, fused, known.backend, known.direct)
    return output if after == "none" else _activated(output, after)


def _activated(x: Tensor, activation: str) -> Tensor:
    """Activates by a norm that changes nothing: the bits are those of a fused activation."""
    mean, variance = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return batch_norm_activation(
        x,
        None,
        None,
        mean,
        variance,
        training=False,
        eps=0.0,
        activation=activation,
        backend="native",
    )


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, groups: int
) -> None:
    _checks.tensor(input, NAME, "input")
    _checks.tensor(weight, NAME, "weight")
    _checks.rank(input, 5, NAME, "input", "(B, C_in, T, H, W)")
    _checks.rank(weight, 5, NAME, "weight", "(C_out, C_in / groups, 1, 1, 1)")
    _checks.floating(input, NAME, "input")
    _checks.same_kind(weight, input, NAME, "weight", "input")
    _checks.non_empty_space(input, NAME, "input")
    if tuple(weight.shape[2:]) != (1, 1, 1):
        raise ValueError(
            f"{NAME}: weight's kernel must be (1, 1, 1), got {tuple(weight.shape[2:])}"
        )
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{NAME}: groups must be an int, got {type(groups).__name__}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"{NAME}: groups must be at least 1 and divide weight's {weight.shape[0]} output "
            f"channels, got {groups}"
        )
    if weight.shape[1] * groups != input.shape[1]:
        raise ValueError(
            f"{NAME}: weight takes {weight.shape[1] * groups} channels in {groups} group(s), "
            f"input has {input.shape[1]}"
        )
    if bias is not None:
        _checks.alike(bias, weight.shape[:1], input, NAME, "bias")
    if residual is not None:
        size = (input.shape[0], weight.shape[0], *input.shape[2:])
        _checks.alike(residual, size, input, NAME, "residual")
