"""A depthwise convolution with pointwise ones before and behind it: an inverted bottleneck.

What lies between them are the largest tensors of most networks. Here they are computed a few rows
at a time, in cache, and never stored.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from evit_kernels import _activations, _autocast, _calls, _checks, _registration, backends
from evit_kernels.depthwise_conv3d import depthwise_conv3d
from evit_kernels.depthwise_conv3d import geometry as _geometry
from evit_kernels.pointwise_conv3d import pointwise_conv3d
from evit_kernels.pointwise_depthwise_conv3d import native, op, reference
from evit_kernels.pointwise_depthwise_conv3d.op import Tensors

NAME = "pointwise_depthwise_conv3d"
_CALLS = _calls.Calls()
_SINGLE_CALLS = "single calls"  # in place of a backend


def pointwise_depthwise_conv3d(
    input: Tensor,
    pointwise_weight: Tensor | None,
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
    project_weight: Tensor | None = None,
    project_bias: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mixes the channels of every position, convolves every channel on its own, mixes them again.

    Equivalent to, where all parts are there:

        x = pointwise_conv3d(input, pointwise_weight, pointwise_bias,
                             activation=pointwise_activation)
        x = depthwise_conv3d(x, weight, bias, stride, padding, dilation,
                             temporal_padding=temporal_padding, activation=activation)
        pointwise_conv3d(x, project_weight, project_bias, residual=residual)

    with the same bits, and computed so where gradients are wanted, on other devices than CPUs, and
    where the core has no kernels that join them: those are for windows of 3 x 3 x 3, or of
    5 x 5 x 5 at stride 1, and clips of three frames and more, on AVX-512 and NEON. The last
    convolution joins in where some rows of all channels fit in a core's cache.

    Args:
        input: (B, C_in, T, H, W), float32, float16, bfloat16 or float64, any strides.
        pointwise_weight: (C, C_in, 1, 1, 1), dtype and device of `input`, as all parameters; None
            for no convolution before the depthwise one, then C is C_in.
        pointwise_bias: (C,) or None.
        weight: (C, 1, k_t, k_h, k_w), each k from 1 to 7.
        bias: (C,) or None.
        stride, padding, dilation, temporal_padding: of the depthwise convolution, as there.
        pointwise_activation: after the first convolution: None, "relu", "relu6", "hardswish",
            "gelu", "gelu_tanh" or "silu".
        activation: after the depthwise convolution.
        project_weight: (C_out, C, 1, 1, 1); None for no convolution behind the depthwise one, then
            C_out is C.
        project_bias: (C_out,) or None.
        residual: (B, C_out, T', H', W') or None, added behind the last convolution.
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C_out, T', H', W') in the dtype and memory format of `input`.

    Raises:
        ValueError: wrong rank, sizes or names, a bias or residual without its convolution.
        TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    tensors = Tensors(
        *_autocast.to_lower_precision(
            input,
            pointwise_weight,
            pointwise_bias,
            weight,
            bias,
            project_weight,
            project_bias,
            residual,
        )
    )
    options = (stride, padding, dilation, temporal_padding, pointwise_activation, activation)
    found = _CALLS.call(tensors, options, backend)
    if isinstance(found, Tensor):
        return found
    key, known = found
    if known is None:
        middle = _check(tensors)
        window = _geometry.make(middle, tensors.weight, tensors.bias, *options[:4], NAME)
        _check_projection(tensors, window.output_size(middle.shape[2:]))
        functions = (
            _activations.canonical(pointwise_activation, NAME, "pointwise_activation"),
            _activations.canonical(activation, NAME),
        )
        chosen = backends.select(NAME, backend, input) if input.is_cpu else _SINGLE_CALLS
        parts = (tensors.input, tensors.pointwise_weight, tensors.weight, tensors.project_weight)
        if key and chosen == "native" and not native.serves(*parts, window):
            chosen = _SINGLE_CALLS  # these may have a short way; the operator makes them too
        direct = key and _calls.direct(op.BACKENDS, chosen, *tensors, window, functions)
        known = _CALLS.learn(key, tensors, chosen, (window, functions), direct)
    window, functions = known.arguments
    if known.backend == "reference":
        return reference.pointwise_depthwise_conv3d(*tensors, window, functions)
    if known.backend == _SINGLE_CALLS or _registration.needs_autograd(*tensors):
        return _one_by_one(tensors, *options, backend)
    return op.pointwise_depthwise_conv3d(tensors, window, functions, known.backend)


def _one_by_one(
    tensors: Tensors,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    temporal_padding: str,
    pointwise_activation: str | None,
    activation: str | None,
    backend: str | None,
) -> Tensor:
    """Returns the same from single operators; the first two are one where those can be joined."""
    x, first, first_bias, weight, bias, last, last_bias, residual = tensors
    second: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "temporal_padding": temporal_padding,
        "activation": activation,
        "backend": backend,
    }
    if first is not None and last is not None:
        x = pointwise_depthwise_conv3d(
            x, first, first_bias, weight, bias, pointwise_activation=pointwise_activation, **second
        )
    else:
        if first is not None:
            x = pointwise_conv3d(
                x, first, first_bias, activation=pointwise_activation, backend=backend
            )
        x = depthwise_conv3d(x, weight, bias, **second)
    if last is None:
        return x
    return pointwise_conv3d(x, last, last_bias, residual=residual, backend=backend)


def _check(tensors: Tensors) -> Tensor:
    """Checks what comes first; returns a tensor of the size of the depthwise part's input."""
    input, weight = tensors.input, tensors.weight
    _checks.tensor(input, NAME, "input")
    _checks.tensor(weight, NAME, "weight")
    _checks.rank(input, 5, NAME, "input", "(B, C_in, T, H, W)")
    _checks.rank(weight, 5, NAME, "weight", "(C, 1, k_t, k_h, k_w)")
    _checks.floating(input, NAME, "input")
    _checks.non_empty_space(input, NAME, "input")
    channels = _check_pointwise(
        tensors.pointwise_weight, tensors.pointwise_bias, input, input.shape[1], "pointwise"
    )
    if weight.shape[0] != channels:
        raise ValueError(
            f"{NAME}: weight has {weight.shape[0]} channels, "
            + (
                f"input has {channels}"
                if tensors.pointwise_weight is None
                else f"pointwise_weight gives {channels}"
            )
        )
    return input[:, :1].expand(-1, channels, -1, -1, -1)


def _check_projection(tensors: Tensors, size: Sequence[int]) -> None:
    """Checks what comes last; size: of the depthwise part's output, (T', H', W')."""
    input, residual = tensors.input, tensors.residual
    channels = _check_pointwise(
        tensors.project_weight, tensors.project_bias, input, tensors.weight.shape[0], "project"
    )
    if residual is None:
        return
    if tensors.project_weight is None:
        raise ValueError(f"{NAME}: residual is added behind project_weight, which is None")
    _checks.alike(residual, (input.shape[0], channels, *size), input, NAME, "residual")


def _check_pointwise(
    weight: Tensor | None, bias: Tensor | None, input: Tensor, channels: int, name: str
) -> int:
    """Checks a pointwise part of so many input channels; returns those of its output."""
    if weight is None:
        if bias is not None:
            raise ValueError(f"{NAME}: {name}_bias is given, {name}_weight is None")
        return channels
    letters = "(C, C_in, 1, 1, 1)" if name == "pointwise" else "(C_out, C, 1, 1, 1)"
    _checks.tensor(weight, NAME, f"{name}_weight")
    _checks.rank(weight, 5, NAME, f"{name}_weight", letters)
    _checks.same_kind(weight, input, NAME, f"{name}_weight", "input")
    if tuple(weight.shape[2:]) != (1, 1, 1):
        raise ValueError(
            f"{NAME}: {name}_weight's kernel must be (1, 1, 1), got {tuple(weight.shape[2:])}"
        )
    if weight.shape[1] != channels:
        source = "input" if name == "pointwise" else "weight"
        raise ValueError(
            f"{NAME}: {name}_weight takes {weight.shape[1]} channels, {source} has {channels}"
        )
    if bias is not None:
        _checks.alike(bias, weight.shape[:1], input, NAME, f"{name}_bias")
    return weight.shape[0]
