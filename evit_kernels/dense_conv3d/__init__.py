"""Dense 3-D convolution of few input channels, with its bias and activation fused into one pass.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evit_kernels import _activations, _autocast, _calls, _checks, backends
from evit_kernels.dense_conv3d import op, reference
from evit_kernels.dense_conv3d.op import NAME
from evit_kernels.depthwise_conv3d import geometry as _geometry

_CALLS = _calls.Calls()


def dense_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    *,
    temporal_padding: str = "zeros",
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolves a clip across its channels, adds a bias, then activates: a network's first layer.

    Any number of input channels is right; a few (3 of a clip, 1 of a depth map) are fast.
    Equivalent to, with `temporal_padding="zeros"` and `activation="hardswish"`:

        F.hardswish(F.conv3d(input, weight, bias, stride, padding))

    Args:
        input: (B, C_in, T, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (C_out, C_in, k_t, k_h, k_w), dtype and device of `input`.
        bias: (C_out,) or None.
        stride: steps along (T, H, W), one int or three, at least 1.
        padding: border along (T, H, W), one int or three, at least 0; zeros in H and W.
        temporal_padding: what stands before and after the clip: "zeros"; "replicate", its first and
            last frame; "causal", its first frame k_t - 1 times on the left and nothing on the
            right, whatever padding[0] says.
        activation: None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh" or "silu".
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C_out, T', H', W') in the dtype and memory format of `input`; sums are float32 (float64
        for float64), whatever the storage.

    Raises:
        ValueError: wrong rank, sizes or names. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    input, weight, bias = _autocast.to_lower_precision(input, weight, bias)
    options = (stride, padding, temporal_padding, activation)
    key, known = _CALLS.find((input, weight, bias), options, backend)
    if known is None:
        _check(input, weight, bias)
        window = _geometry.window(NAME, input, weight, stride, padding, 1, temporal_padding)
        function = _activations.canonical(activation, NAME)
        chosen = backends.select(NAME, backend, input)
        known = _CALLS.keep(key, _calls.Known(chosen, (window, function)))
    window, function = known.arguments
    if known.backend == "reference":
        return reference.dense_conv3d(input, weight, bias, window, function)
    return op.dense_conv3d(input, weight, bias, window, function, known.backend)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _checks.tensor(input, NAME, "input")
    _checks.tensor(weight, NAME, "weight")
    _checks.rank(input, 5, NAME, "input", "(B, C_in, T, H, W)")
    _checks.rank(weight, 5, NAME, "weight", "(C_out, C_in, k_t, k_h, k_w)")
    _checks.floating(input, NAME, "input")
    _checks.same_kind(weight, input, NAME, "weight", "input")
    _checks.non_empty_space(input, NAME, "input")
    if weight.shape[1] != input.shape[1]:
        raise ValueError(
            f"{NAME}: weight takes {weight.shape[1]} channels, input has {input.shape[1]}"
        )
    if min(weight.shape) < 1:
        raise ValueError(f"{NAME}: weight is empty: {tuple(weight.shape)}")
    if bias is not None:
        _checks.tensor(bias, NAME, "bias")
        _checks.rank(bias, 1, NAME, "bias", "(C_out,)")
        _checks.same_kind(bias, input, NAME, "bias", "input")
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(
                f"{NAME}: bias has {bias.shape[0]} channels, weight has {weight.shape[0]}"
            )
