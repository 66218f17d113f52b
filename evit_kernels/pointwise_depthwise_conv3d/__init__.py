"""A pointwise convolution, then a depthwise one: the first two thirds of an inverted bottleneck.

What lies between them is the largest tensor of most networks. Here it is computed a few rows at a
time, in cache, and never stored.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evit_kernels import _activations, _autocast, _calls, _checks, _registration, backends
from evit_kernels.depthwise_conv3d import depthwise_conv3d
from evit_kernels.depthwise_conv3d import geometry as _geometry
from evit_kernels.pointwise_conv3d import pointwise_conv3d
from evit_kernels.pointwise_depthwise_conv3d import native, op, reference

NAME = "pointwise_depthwise_conv3d"
_CALLS = _calls.Calls()
_TWO_CALLS = "two calls"  # in place of a backend


def pointwise_depthwise_conv3d(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    temporal_padding: str = "zeros",
    pointwise_activation: str | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mixes the channels of every position, activates, then convolves every channel on its own.

    Equivalent to:

        middle = pointwise_conv3d(input, pointwise_weight, pointwise_bias,
                                  activation=pointwise_activation)
        depthwise_conv3d(middle, weight, bias, stride, padding, dilation,
                         temporal_padding=temporal_padding, activation=activation)

    with the same bits, and computed so where gradients are wanted, on other devices than CPUs, and
    where the core has no kernels that do both at once: those are for windows of 3 x 3 x 3, or of
    5 x 5 x 5 at stride 1, and clips of three frames and more, on AVX-512 and NEON.

    Args:
        input: (B, C_in, T, H, W), float32, float16, bfloat16 or float64, any strides.
        pointwise_weight: (C, C_in, 1, 1, 1), dtype and device of `input`, as all parameters.
        pointwise_bias: (C,) or None.
        weight: (C, 1, k_t, k_h, k_w), each k from 1 to 7.
        bias: (C,) or None.
        stride, padding, dilation, temporal_padding: of the depthwise convolution, as there.
        pointwise_activation: after the pointwise convolution: None, "relu", "relu6", "hardswish",
            "gelu", "gelu_tanh" or "silu".
        activation: after the depthwise convolution.
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C, T', H', W') in the dtype and memory format of `input`.

    Raises:
        ValueError: wrong rank, sizes or names. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    tensors = _autocast.to_lower_precision(input, pointwise_weight, pointwise_bias, weight, bias)
    input, pointwise_weight, pointwise_bias, weight, bias = tensors
    options = (stride, padding, dilation, temporal_padding, pointwise_activation, activation)
    key, known = _CALLS.find(tensors, options, backend)
    if known is None:
        middle = _check(input, pointwise_weight, pointwise_bias, weight)
        window = _geometry.make(
            middle, weight, bias, stride, padding, dilation, temporal_padding, NAME
        )
        functions = (
            _activations.canonical(pointwise_activation, NAME, "pointwise_activation"),
            _activations.canonical(activation, NAME),
        )
        chosen = backends.select(NAME, backend, input) if input.is_cpu else _TWO_CALLS
        if key and chosen == "native" and not native.serves(input, weight, window):
            chosen = _TWO_CALLS  # these may have a short way; the operator itself makes them too
        direct = key and _calls.direct(op.BACKENDS, chosen, *tensors, window, functions)
        known = _CALLS.keep(key, _calls.Known(chosen, (window, functions), direct))
    window, functions = known.arguments
    if known.backend == "reference":
        return reference.pointwise_depthwise_conv3d(
            input, pointwise_weight, pointwise_bias, weight, bias, window, functions
        )
    if known.backend == _TWO_CALLS or _registration.needs_autograd(*tensors):
        middle = pointwise_conv3d(
            input,
            pointwise_weight,
            pointwise_bias,
            activation=pointwise_activation,
            backend=backend,
        )
        return depthwise_conv3d(
            middle,
            weight,
            bias,
            stride,
            padding,
            dilation,
            temporal_padding=temporal_padding,
            activation=activation,
            backend=backend,
        )
    if known.direct is not None:
        result: Tensor = known.direct(*tensors)
        return result
    return op.pointwise_depthwise_conv3d(
        input, pointwise_weight, pointwise_bias, weight, bias, window, functions, known.backend
    )


def _check(
    input: Tensor, pointwise_weight: Tensor, pointwise_bias: Tensor | None, weight: Tensor
) -> Tensor:
    """Checks the pointwise half; returns a tensor of the size of what lies between the halves."""
    _checks.tensor(input, NAME, "input")
    _checks.tensor(pointwise_weight, NAME, "pointwise_weight")
    _checks.tensor(weight, NAME, "weight")
    _checks.rank(input, 5, NAME, "input", "(B, C_in, T, H, W)")
    _checks.rank(pointwise_weight, 5, NAME, "pointwise_weight", "(C, C_in, 1, 1, 1)")
    _checks.rank(weight, 5, NAME, "weight", "(C, 1, k_t, k_h, k_w)")
    _checks.floating(input, NAME, "input")
    _checks.same_kind(pointwise_weight, input, NAME, "pointwise_weight", "input")
    _checks.non_empty_space(input, NAME, "input")
    if tuple(pointwise_weight.shape[2:]) != (1, 1, 1):
        raise ValueError(
            f"{NAME}: pointwise_weight's kernel must be (1, 1, 1), "
            f"got {tuple(pointwise_weight.shape[2:])}"
        )
    channels = pointwise_weight.shape[0]
    if pointwise_weight.shape[1] != input.shape[1]:
        raise ValueError(
            f"{NAME}: pointwise_weight takes {pointwise_weight.shape[1]} channels, "
            f"input has {input.shape[1]}"
        )
    if weight.shape[0] != channels:
        raise ValueError(
            f"{NAME}: weight has {weight.shape[0]} channels, pointwise_weight gives {channels}"
        )
    if pointwise_bias is not None:
        _checks.tensor(pointwise_bias, NAME, "pointwise_bias")
        _checks.same_kind(pointwise_bias, input, NAME, "pointwise_bias", "input")
        if tuple(pointwise_bias.shape) != (channels,):
            raise ValueError(
                f"{NAME}: pointwise_bias must be ({channels},), got {tuple(pointwise_bias.shape)}"
            )
    return input[:, :1].expand(-1, channels, -1, -1, -1)
